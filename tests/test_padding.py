"""A padding token inside a text: models of the RoBERTa family give it no position, and attention sees it."""

import json

import pytest
from models import load_tool
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import conversion
from fastinfer.errors import ConfigError

SIZES = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
LINES = [[0, 5, 1, 6, 2], [1], [0, 1, 1, 2], [7, 8, 9], [1, 1, 4], [0, *range(5, 20), 1, 30, 2]]
KINDS = {
    "Roberta": {"pad_token_id": 1, "max_position_embeddings": 30},
    "XLMRoberta": {"pad_token_id": 4, "max_position_embeddings": 30},
    "RobertaPreLayerNorm": {"pad_token_id": 1, "max_position_embeddings": 30},
    "MPNet": {"pad_token_id": 1, "max_position_embeddings": 30},
}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(folder, the oracle's hidden states of each line)."""
    torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SIZES, **KINDS[request.param])
    model = getattr(transformers, f"{request.param}Model")(config).eval()
    for name, weight in model.named_parameters():
        if "position" in name or "word" in name:
            torch.nn.init.normal_(weight)  # PyTorch sets the rows of padding to 0
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    with torch.no_grad():
        want = [model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0].numpy() for ids in LINES]
    return folder, want


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_padding_inside_a_text_is_that_of_transformers(device, made):
    folder, want = made
    model = fastinfer.load(folder, device=device)
    got = model.hidden_states(fastinfer.PackedBatch.from_ids(LINES))
    for ids, mine, theirs in zip(LINES, got, want, strict=True):
        assert_allclose(mine, theirs, rtol=0, atol=1e-4)
        if device == "cpu":
            assert_array_equal(mine, model.hidden_states(fastinfer.PackedBatch.from_ids([ids]))[0])


def test_padding_survives_conversion_and_training(made, tmp_path):
    folder, want = made
    conversion.convert(folder, tmp_path / "out")
    model = fastinfer.load(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["positions"]["skip"] in (1, 4)
    for mine, theirs in zip(model.hidden_states(fastinfer.PackedBatch.from_ids(LINES)), want, strict=True):
        assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    if model.config.distances is None:  # the training form of MPNet is not made yet
        torch, encoder = pytest.importorskip("torch"), load_tool("training.encoder")
        trained = encoder.load(tmp_path / "out").eval()
        for ids, theirs in zip(LINES, want, strict=True):
            with torch.no_grad():
                assert_allclose(trained(torch.tensor([ids]))[-1][0].numpy(), theirs, rtol=0, atol=1e-4)


def test_what_may_take_no_position(made, tmp_path):
    conversion.convert(made[0], tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    stored = json.loads(path.read_text())
    for skip, said in ((40, "expected 0 to vocabulary-1=39"), (-1, "expected 0 to"), ("1", "expected an integer")):
        path.write_text(json.dumps(stored | {"positions": stored["positions"] | {"skip": skip}}))
        with pytest.raises(ConfigError, match=rf"positions\.skip is .*{said}"):
            fastinfer.load(tmp_path / "out")
