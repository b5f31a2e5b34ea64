from mister_e_hf.base.head_names import head_titles


def test_the_only_head_of_a_model_is_not_called_a_mixture():
    assert head_titles(["mixture"]) == {"mixture": "model"}
    alone = ["mixture", "mixture without zeros"]
    assert list(head_titles(alone).values()) == ["model", "model without zeros"]
    assert list(head_titles([*alone, "speech"]).values()) == [*alone, "speech"]
