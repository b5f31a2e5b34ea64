from mister_e_hf.base.head_names import head_titles


def test_the_only_head_of_a_model_is_not_called_a_mixture():
    assert head_titles(["mixture"]) == {"mixture": "model"}
    alone = ["mixture", "mixture without zeros"]
    assert list(head_titles(alone).values()) == ["model", "model without zeros"]
    heads = ["speech", "speech without zeros", "text"]
    assert list(head_titles([*alone, *heads]).values()) == [*alone, *heads]


def test_one_further_head_is_not_mixed():
    heads = ["fusion", "fusion without zeros"]  # such as EGMF's head on the fusion alone
    assert list(head_titles(["mixture", *heads]).values()) == ["model", *heads]
