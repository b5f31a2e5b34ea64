"""What a language model may answer, as tokens and as text, with tokenizers of every kind."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError as REFUSED

from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.schema import LABELS
from mister_e_hf.models.egmf.answers import Answers, AnswerTree
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.wording import words_of
from support.tokenizers_of_kinds import KINDS, tokenizer_of

LANGUAGES = ["en", "zh"]


def answers_of(kind="byte_level", labels=LABELS["meld"], **changes):
    return Answers(EgmfConfig(id2label=dict(enumerate(labels)), **changes), tokenizer_of(kind))


def scores_of(kind="byte_level", **changes):
    return answers_of(kind, ["sentiment"], problem_type="regression", **changes)


def written(answers, index):
    return answers.text(answers.token_ids[index])


@pytest.mark.parametrize("answer", ["word", "index"])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_read_as_they_are_written(kind, language, answer):
    for labels in LABELS.values():
        answers = answers_of(kind, labels, language=language, answer=answer)
        assert [answers.parse(written(answers, index)) for index in range(len(labels))] == list(range(len(labels)))
        assert [answers.parse(text) for text in answers.texts] == list(range(len(labels)))
        assert {ids[-1] for ids in answers.token_ids} == {tokenizer_of(kind).eos_token_id}
        assert answers.values is None


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_read_as_they_are_written(kind, language):
    answers = scores_of(kind, language=language)
    assert len(answers.texts) == len(answers.values) == 61
    for index, value in enumerate(answers.values):
        assert value == round((index - 30) / 10, 1) == answers.parse(written(answers, index))
        assert answers.nearest(value) == index
    assert answers.texts[30] == "+0.0" and {len(text) for text in answers.texts} == {4}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_accepts_the_answers_alone(kind):
    labels = ["happy", "happy sad", "sad", "non-negative", "negative"]
    for answers in (answers_of(kind, labels), scores_of(kind)):
        tree = AnswerTree(answers.token_ids)
        assert sorted(tree) == sorted(answers.token_ids)
        for ids in answers.token_ids:
            assert all(token in tree.following(ids[:at]) for at, token in enumerate(ids))
            assert tree.following(ids) == []
        assert tree.following([10**6]) == []


def test_a_word_follows_the_cue_as_inside_a_sentence():
    for kind in ("byte_level", "gemma_like", "llama_like"):
        tokenizer, answers = tokenizer_of(kind), answers_of(kind)
        whole = tokenizer("The emotion is joy", add_special_tokens=False)["input_ids"]
        cue = tokenizer("The emotion is", add_special_tokens=False)["input_ids"]
        assert [*cue, *answers.token_ids[4]] == [*whole, tokenizer.eos_token_id]
    # in Chinese without a gap, and without the mark that SentencePiece puts before a text
    assert written(answers_of("llama_like", language="zh"), 4) == "高兴"
    assert len(answers_of("llama_like", language="zh").token_ids[4]) <= 3


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" joy", "joy"),
        ("Joy.", "joy"),
        ("JOY, I think", "joy"),
        ('"joy"', "joy"),
        ("joy\nThe emotion is anger", "joy"),
        ("joy - what else", "joy"),
        ("happy", "joy"),
        ("angry!", "anger"),
        ("高兴", "joy"),
        ("开心。", "joy"),
        ("sad", "sadness"),
        ("", None),
        ("  \n", None),
        ("joyful-ish", None),
        ("joyfulness", None),
        ("joy-like", None),
        ("not joy", None),
        ("The emotion is joy", None),
        ("高兴不起来", None),
        ("4", None),
        ("\ufffd", None),
    ],
)
def test_generated_text_is_a_label_or_nothing(text, label):
    index = answers_of().parse(text)
    assert (None if index is None else LABELS["meld"][index]) == label


def test_the_longest_label_at_the_beginning_is_read():
    answers = answers_of(labels=["happy", "happy sad", "negative", "non-negative", "non"])
    texts = ["happy", "happy  SAD", "happy and sad", "non-negative", "non - negative", "negative", "non"]
    assert [answers.parse(text) for text in texts] == [0, 1, 0, 3, 3, 2, 4]


def test_an_index_is_read_whole():
    answers = answers_of(labels=[f"class {number}" for number in range(12)], answer="index")
    assert [answers.parse(text) for text in ["1", "10", "11 ", "12", "1st", "class 3"]] == [1, 10, 11, None, None, 3]


def test_an_alias_of_two_labels_is_not_read():
    answers = answers_of(labels=["happy", "joy", "sad"])
    assert [answers.parse(text) for text in ["happy", "joy", "开心", "sadness"]] == [0, 1, None, 2]


def test_own_words_come_before_names():
    answers = answers_of(labels=["happy", "sad"], label_words={"happy": "sad", "sad": "happy"})
    assert answers.texts == ["sad", "happy"]
    assert [answers.parse("sad"), answers.parse("happy")] == [0, 1]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("+1.5", 1.5),
        (" -0.8\n", -0.8),
        ("1.5", 1.5),
        ("-2", -2.0),
        ("+0.5.", 0.5),
        ("− 0.5", -0.5),
        ("+ 0 . 5", 0.5),
        ("-0.0", 0.0),
        ("+3.0, or so", 3.0),
        ("3.1", None),
        ("-30", None),
        ("1,5", None),
        ("1.5.2", None),
        ("50%", None),
        ("1.5x", None),
        ("1e0", None),
        ("nan", None),
        ("inf", None),
        ("about 1.5", None),
        ("9" * 400, None),
        ("", None),
        ("+", None),
    ],
)
def test_generated_text_is_a_score_in_the_range_or_nothing(text, score):
    assert scores_of().parse(text) == score


def test_grids():
    assert scores_of(score_range=[-1, 1], score_step=0.5).texts == ["-1.0", "-0.5", "+0.0", "+0.5", "+1.0"]
    assert scores_of(score_range=[1, 5], score_step=1).texts == ["+1", "+2", "+3", "+4", "+5"]
    assert scores_of(score_range=[0, 100], score_step=50).texts == ["+000", "+050", "+100"]
    assert scores_of(score_range=[-0.75, 0.75], score_step=0.25).texts[2:5] == ["-0.25", "+0.00", "+0.25"]
    assert len(scores_of(score_range=[-3, 3], score_step=0.01).texts) == 601
    for ends, step in (([-1, 1], 0.3), ([-1, 1], 3), ([0, 1000], 0.1)):
        with pytest.raises(REFUSED, match="score_step must divide score_range into 1 to 1,000 steps"):
            scores_of(score_range=ends, score_step=step)


def test_the_nearest_score():
    answers = scores_of()
    nearest = {0.04: "+0.0", -0.04: "+0.0", 0.06: "+0.1", -2.96: "-3.0", 3.04: "+3.0", 1 / 3: "+0.3"}
    assert {value: answers.texts[answers.nearest(value)] for value in nearest} == nearest
    with pytest.raises(InputError, match=r"The score 3.2 is outside of -3.0 to \+3.0, which can be answered"):
        answers.nearest(3.2)


def test_chinese_words():
    cherma = ["愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"]
    assert words_of(LABELS["cherma"], "zh") == cherma
    assert words_of(LABELS["meld"], "zh") == ["平静", "惊奇", "恐惧", "悲伤", "高兴", "厌恶", "愤怒"]
    assert words_of(LABELS["ch_sims_v2"], "zh") == ["消极", "中性", "积极"]
    assert words_of(["Anger", "bored"], "zh", {"bored": "无聊"}) == ["愤怒", "无聊"]
    assert words_of(["Anger", "bored"], "en") == ["Anger", "bored"]


def test_labels_that_cannot_be_told_apart_raise():
    with pytest.raises(REFUSED, match="The labels 'joy' and 'happy' are both answered with '高兴'"):
        answers_of(labels=["joy", "happy"], language="zh")
    with pytest.raises(REFUSED, match="The labels 'fun' and 'glee' are both answered with 'joy'"):
        answers_of(labels=["fun", "glee"], label_words={"fun": "joy", "glee": "joy"})
    with pytest.raises(REFUSED, match="The label 'fun' has no word; give it one in label_words"):
        answers_of(labels=["fun", "glee"], label_words={"fun": " "})
    with pytest.raises(InputError, match="The tokenizer cannot write the answer 'glee' of the label 'glee'"):
        answers_of("of_words", labels=["joy", "glee"])
    with pytest.raises(InputError, match="The labels 'glee' and 'mirth' have the same tokens"):
        answers_of("of_words", labels=["glee", "mirth"])


def test_a_configuration_is_checked_before_a_language_model_is_loaded():
    with pytest.raises(REFUSED, match="The labels 'joy' and 'happy' are both answered with '高兴'"):
        EgmfConfig(id2label={0: "joy", 1: "happy"}, language="zh")
    with pytest.raises(REFUSED, match="score_step must divide score_range"):
        EgmfConfig(id2label={0: "sentiment"}, problem_type="regression", score_range=[-1, 1], score_step=0.3)


def test_a_tokenizer_without_an_end_raises():
    tokenizer = tokenizer_of.__wrapped__("of_words")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no token that ends a text"):
        Answers(EgmfConfig(id2label={0: "joy", 1: "fear"}), tokenizer)
