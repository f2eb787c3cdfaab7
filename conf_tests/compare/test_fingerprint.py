"""Fingerprints find one altered bit, keep distances and angles, and draw nothing from the global stream."""

import pytest
import torch

from stopgrad.compare import fingerprint
from stopgrad.compare.difference import cosine, distances, first_difference, pairing
from stopgrad.compare.fingerprint import FINE, SKETCH, Fingerprints, sketch, tensor_hash


def test_hash_sees_one_bit_and_only_content():
    a = torch.randn(1000)
    b = a.clone()
    assert tensor_hash(a) == tensor_hash(b)
    b.view(torch.int32)[500] ^= 1
    assert tensor_hash(a) != tensor_hash(b)
    assert tensor_hash(torch.randn(4, 6).t()) != tensor_hash(torch.zeros(0))
    strided = torch.arange(12.0).reshape(3, 4).t()
    assert tensor_hash(strided) == tensor_hash(strided.contiguous())


def test_nothing_is_drawn_from_the_global_stream():
    before = torch.get_rng_state()
    sketch([torch.randn(100, generator=torch.Generator().manual_seed(0))])
    tensor_hash(torch.zeros(3))
    assert torch.equal(before, torch.get_rng_state())


def test_a_small_sketch_is_exact():
    x = torch.randn(SKETCH, dtype=torch.float64)
    assert sketch([x[:100], x[100:]]).norm().item() == pytest.approx(x.norm().item(), rel=1e-12)


def test_a_sketch_keeps_distances_and_is_linear():
    torch.manual_seed(0)
    ratios = []
    for _ in range(40):
        a, b = torch.randn(2, 50_000, dtype=torch.float64)
        torch.testing.assert_close(sketch([a]) - sketch([b]), sketch([a - b]))
        ratios.append(((sketch([a]) - sketch([b])).norm() / (a - b).norm()).item())
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.02)
    assert max(abs(r - 1) for r in ratios) < 0.16  # four standard deviations of 1 / sqrt(2 * 256)


def test_structured_changes_are_kept_too():
    """A whole layer that moves by a constant: what a sketch with regular signs would lose or double."""
    flat = torch.zeros(60_000, dtype=torch.float64)
    cases = [(0, 4096, 1), (8192, 20_000, 1)] + [(5, 60_000, step) for step in (64, SKETCH, 1024)]
    cases += [(7, 4096 * rows, 4096) for rows in range(2, 15)]  # one column of a layer that is 4096 wide
    for start, size, step in cases:
        x = flat.clone()
        x[start : start + size : step] = 0.01
        assert sketch([x]).norm().item() == pytest.approx(x.norm().item(), rel=0.35)


def test_fine_sketch_keeps_angles():
    torch.manual_seed(0)
    a, b = torch.randn(2, 100_000, dtype=torch.float64)
    for mixed in (a + b, a, -a, b):
        expected = torch.nn.functional.cosine_similarity(a, mixed, dim=0).item()
        assert cosine(sketch([a], FINE), sketch([mixed], FINE)) == pytest.approx(expected, abs=0.06)
    assert cosine(sketch([a], FINE), torch.zeros(FINE, dtype=torch.float64)) is None


def taken(steps, change=None, streams=None):
    out = Fingerprints(["a.weight", "b.weight", "b.bias"])
    for step in steps:
        state = {name: torch.full((4,), float(step)) for name in out.names}
        if change and step >= change:
            state["b.weight"][2] += 1e-6 * (step + 1)
        out.take(step, state, (streams or {}).get(step, (7, 9)))
    return out


def test_first_difference_and_distance():
    here, there = taken((0, 1, 2, 4, 8), change=4), taken((0, 1, 2, 4, 8))
    found = first_difference(here, there)
    assert found == {"step": 4, "after": 2, "exact": False, "tensor": "b.weight", "tensors": 1, "of": 3}
    far = dict(distances(here, there))
    assert [far[s] for s in (0, 1, 2)] == [0, 0, 0]
    for step in (4, 8):  # three tensors of four elements; one element moved
        assert far[step] == pytest.approx(1e-6 * (step + 1) / (step * 12**0.5), rel=0.1)
    assert first_difference(there, there) is None


def test_steps_that_only_one_has_are_no_difference():
    found = first_difference(taken((0, 2, 3, 4), change=3), taken((0, 2, 4)))
    assert (found["step"], found["after"]) == (4, 2)


def test_pairing_tells_streams_that_differ():
    fair = pairing(taken((0, 1, 2)), taken((0, 1, 2)))
    assert (fair["weights"], fair["data"], fair["random"]) == (True, True, True)
    unfair = pairing(taken((0, 1, 2), streams={1: (7, 8)}), taken((0, 1, 2)))
    assert (unfair["data"], unfair["random"]) == (False, True)
    other = taken((0, 1, 2), change=-1)
    assert pairing(other, taken((0, 1, 2)))["weights"] is False
    after = pairing(taken((0, 1, 2), change=1, streams={1: (1, 1), 2: (1, 1)}), taken((0, 1, 2)))
    assert (after["data"], after["random"]) == (True, True)  # once the weights differ, an agent's data may


def test_saved_and_loaded_is_the_same(tmp_path):
    written = taken((0, 1), change=1)
    written.gradients = {"a": torch.ones(FINE)}
    written.save(tmp_path / "f.pt")
    read = Fingerprints.load(tmp_path / "f.pt")
    assert first_difference(written, read) is None
    assert (read.names, read.steps, read.streams, read.hashes) == (
        written.names, written.steps, written.streams, written.hashes,
    )  # fmt: skip
    assert torch.equal(read.sketches[1]["b"], written.sketches[1]["b"])


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_damaged_file_is_one_line(tmp_path, content):
    file = tmp_path / "f.pt"
    taken((0, 1)).save(file)
    file.write_bytes(file.read_bytes()[:700] if content is None else content)
    with pytest.raises(ValueError, match=r"f\.pt: cannot be read: .+") as caught:
        Fingerprints.load(file)
    assert "\n" not in str(caught.value)


def test_other_version_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "VERSION", fingerprint.VERSION - 1)
    taken((0, 1)).save(tmp_path / "f.pt")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="written by another version of stopgrad"):
        Fingerprints.load(tmp_path / "f.pt")


def test_a_replay_that_disagrees_is_none():
    own, replay = taken((0, 4, 8), change=8), taken((4, 5, 6, 7, 8))
    with pytest.raises(ValueError, match="gave other weights at step 8"):
        own.merged(replay)
    merged = own.merged(taken((4, 5, 6, 7, 8), change=7 + 1))
    assert merged.steps == [0, 4, 5, 6, 7, 8]
