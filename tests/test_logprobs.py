import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftbench.errors import FtbenchError
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.logprobs import completion_logprobs, sequence_logprobs
from ftbench.training.row import rounded
from tiny import draw_sequence, drop_nothing, load


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model with weights so large that every token that is attended to shows in the logits."""
    loaded = load(request.getfixturevalue(request.param))
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return loaded


def random_batch(seed: int) -> list[TokenSequence]:
    draw = random.Random(seed)
    return [draw_sequence(draw) for _ in range(draw.randint(1, 6))]


def padded(batch: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """The batch as rows padded on the right, with labels as transformers wants them."""
    width = max(len(sequence.ids) for sequence in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(batch):
        length = len(sequence.ids)
        ids[row, :length] = torch.tensor(sequence.ids)
        mask[row, :length] = 1
        labels[row, sequence.prompt_length : length] = ids[row, sequence.prompt_length : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def padded_logits(model: PreTrainedModel, batch: Sequence[TokenSequence]) -> list[Tensor]:
    """For each sequence the logits that predict its completion, from padded rows."""
    rows = padded(batch)
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return [
        logits[row, sequence.prompt_length - 1 : len(sequence.ids) - 1] for row, sequence in enumerate(batch)
    ]  # [sequences][completion tokens, vocabulary]


def padded_scores(model: PreTrainedModel, batch: Sequence[TokenSequence]) -> list[Tensor]:
    """For each sequence the log-probabilities of its completion's tokens, from padded rows."""
    return [
        logits.log_softmax(-1).gather(-1, torch.tensor(sequence.ids[sequence.prompt_length :])[:, None])[:, 0]
        for sequence, logits in zip(batch, padded_logits(model, batch), strict=True)
    ]  # [sequences][completion tokens]


def padded_logprobs(model: PreTrainedModel, batch: Sequence[TokenSequence]) -> Tensor:
    return torch.stack([scores.sum() for scores in padded_scores(model, batch)])


@pytest.mark.parametrize("seed", range(20))
def test_packed_logprobs_equal_padded_rows_in_float32(model: PreTrainedModel, seed: int) -> None:
    batch = random_batch(seed)
    with torch.no_grad():
        packed, rows = sequence_logprobs(model, batch), padded_logprobs(model, batch)
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, rows, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_packed_scores_equal_padded_rows_in_float64(model: PreTrainedModel, seed: int) -> None:
    model = model.double()
    batch = random_batch(seed)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.logits[0]))
    with torch.no_grad():
        packed = sequence_logprobs(model, batch)
        expected = torch.cat(padded_scores(model, batch))
        torch.testing.assert_close(seen[0][: len(expected)], expected, rtol=1e-10, atol=1e-10)
        # The sums themselves are float32 whatever the model's precision.
        torch.testing.assert_close(packed.double(), padded_logprobs(model, batch), rtol=1e-6, atol=0)


def test_inference_mode_changes_no_logprob(model: PreTrainedModel) -> None:
    batch = random_batch(0)
    with torch.inference_mode():
        inferred = sequence_logprobs(model, batch)
    assert inferred.tolist() == sequence_logprobs(model, batch).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_those_of_transformers_own_labels_loss(model: PreTrainedModel, seed: int) -> None:
    batch = random_batch(seed)
    model.train()  # as in training; without dropout, or the two passes would draw differently
    drop_nothing(model)
    tokens = sum(sequence.completion_length for sequence in batch)
    loss = -sequence_logprobs(model, batch).sum() / tokens
    loss.backward()
    packed = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = model(**padded(batch)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-4 * scale)


def test_only_positions_that_predict_a_completion_reach_the_head(model: PreTrainedModel) -> None:
    batch = random_batch(0)
    assert len(batch) > 1
    hidden: list[Tensor] = []
    given: list[Tensor] = []
    model.base_model.register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
    model.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        sequence_logprobs(model, batch)
    predicting = [
        sequence.prompt_length - 1 <= position < len(sequence.ids) - 1
        for sequence in batch
        for position in range(len(sequence.ids))
    ]
    wanted = hidden[0][0][: len(predicting)][torch.tensor(predicting)]
    assert torch.equal(given[0][0][: len(wanted)], wanted)
    assert len(given[0][0]) == rounded(len(wanted))


def test_chosen_and_rejected_are_told_apart(model: PreTrainedModel) -> None:
    chosen, rejected = random_batch(3), random_batch(4)
    count = min(len(chosen), len(rejected))
    assert count > 1
    batch = [EncodedExample(c, r) for c, r in zip(chosen[:count], rejected[:count], strict=True)]
    with torch.no_grad():
        found = completion_logprobs(model, batch)
        torch.testing.assert_close(found.chosen.sums, padded_logprobs(model, chosen[:count]), rtol=1e-5, atol=0)
        torch.testing.assert_close(found.rejected.sums, padded_logprobs(model, rejected[:count]), rtol=1e-5, atol=0)
    assert found.chosen.lengths.tolist() == [len(s.ids) - s.prompt_length for s in chosen[:count]]
    assert found.rejected.lengths.tolist() == [len(s.ids) - s.prompt_length for s in rejected[:count]]
    torch.testing.assert_close(found.chosen.per_token * found.chosen.lengths, found.chosen.sums)


def test_demonstrations_have_no_rejected_logprobs(model: PreTrainedModel) -> None:
    batch = random_batch(5)
    with torch.no_grad():
        found = completion_logprobs(model, [EncodedExample(sequence, None) for sequence in batch])
    assert found.chosen.sums.shape == found.chosen.lengths.shape == (len(batch),)
    with pytest.raises(FtbenchError, match="must say needs = 'preferences'"):
        _ = found.rejected


def test_without_a_reference_the_log_ratio_says_how_to_get_one(model: PreTrainedModel) -> None:
    with torch.no_grad():
        found = completion_logprobs(model, [EncodedExample(sequence, None) for sequence in random_batch(5)])
    with pytest.raises(FtbenchError, match=r"training\.with_reference\(\)"):
        _ = found.chosen.log_ratio


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_their_own_give_the_same_as_packed_ones(model: PreTrainedModel, seed: int) -> None:
    batch = random_batch(seed)
    with torch.no_grad():
        packed, rows = sequence_logprobs(model, batch), sequence_logprobs(model, batch, packed=False)
    torch.testing.assert_close(packed, rows, rtol=1e-5, atol=0)
