"""Files of every kind: the tensors that were saved, to the bit, and one clear error from broken ones."""

from __future__ import annotations

import datetime
import os
import pathlib
import random
import re
import struct
from argparse import Namespace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hummingbird.checkpoints.tensor_file import CheckpointError, TensorFile, open_tensor_file
from tests.checkpoints import hostile
from tests.golden_files import golden_path, golden_tensors

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16),
]
NUM_FUZZED = 300


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_same(opened: TensorFile, expected: dict[str, torch.Tensor]) -> None:
    """Names, order, shapes, types and bits; every tensor contiguous and alone in its memory."""
    assert list(opened.tensors) == list(expected)
    for name, tensor in expected.items():
        lazy, loaded = opened.tensors[name], opened.tensors[name].load()
        assert (lazy.shape, lazy.dtype) == (tuple(tensor.shape), tensor.dtype), name
        assert (lazy.numel, lazy.nbytes) == (tensor.numel(), tensor.numel() * tensor.dtype.itemsize), name
        assert (loaded.shape, loaded.dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(bits(loaded), bits(tensor.detach())), name
        assert loaded.is_contiguous()
        assert loaded.untyped_storage().nbytes() == lazy.nbytes


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    shared = torch.arange(24)
    made = {str(dtype): (base * 50).to(dtype) for dtype in DTYPES}
    return {
        **made,
        "transposed": base.t(),
        "slice": base[2:5, 1:7:2],
        "shared.first": shared[:10],
        "shared.last": shared[14:].view(2, 5),
        "expanded": torch.arange(3).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "parameter": nn.Parameter(base[0]),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_torch(tmp_path, protocol, is_zip):
    tensors = tensors_of_all_kinds()
    path = tmp_path / "model.ckpt"
    torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    opened = open_tensor_file(path)
    assert_same(opened, tensors)
    assert (opened.layout, opened.nesting, opened.ignored) == ("state_dict", (), ())


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_lists_of_torch(tmp_path, is_zip):
    """The layout of T2V-Turbo's unet_lora.pt: parameters without names."""
    tensors = [nn.Parameter(torch.randn(4, 2)), torch.randn(2, 4), nn.Parameter(torch.randn(3, 1, 1).half())]
    path = tmp_path / "unet_lora.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
    opened = open_tensor_file(path)
    assert opened.layout == "tensor_list"
    assert_same(opened, {str(index): tensor for index, tensor in enumerate(tensors)})


@pytest.mark.parametrize("protocol", [2, 4])
def test_state_dict_of_a_network_and_tensors_with_attributes(tmp_path, protocol):
    """Both carry Python attributes (versions of modules, a tag), which are left out."""
    weights = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm2d(3)).state_dict()
    weights["tagged"] = torch.randn(2)
    weights["tagged"].tag = "a"
    weights["tagged parameter"] = nn.Parameter(torch.randn(2))
    weights["tagged parameter"].tag = {"b": 1}
    torch.save(weights, tmp_path / "weights.pth", pickle_protocol=protocol)
    opened = open_tensor_file(tmp_path / "weights.pth")
    assert_same(opened, weights)
    assert opened.ignored == ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.randn(2, dtype=torch.complex64).conj(), "conjugate"),
        (numpy.ones(3), "multiarray._reconstruct"),
        (torch.empty(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    ],
)
def test_unsupported_tensors_are_named(tmp_path, value, says):
    torch.save({"w": torch.ones(2), "odd": value}, tmp_path / "weights.pth")
    assert says in outcome(tmp_path / "weights.pth")


def test_safetensors(tmp_path):
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of_all_kinds().items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = open_tensor_file(tmp_path / "model.safetensors")
    assert opened.metadata == {"format": "pt"}
    assert_same(opened, {name: tensors[name] for name in opened.tensors})
    assert set(opened.tensors) == set(tensors)


class Callback:
    """Stands for the classes of a training library in a checkpoint."""

    def __init__(self) -> None:
        self.best = numpy.float64(0.5)
        self.folder = pathlib.PurePosixPath("runs")
        self.started = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("key", ["state_dict", "module", "model"])
def test_nested_state_dict_beside_a_training_library(tmp_path, key, protocol):
    weights = {"_forward_module.a.weight": torch.randn(3, 2), "_forward_module.a.bias": torch.randn(3)}
    content = {
        "epoch": 3,
        "global_step": 1234,
        "version": "2.1",
        key: weights,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3, 2)}}}],
        "callbacks": {Callback: Callback(), "x": {1, 2}},
        "hyper_parameters": Namespace(learning_rate=1e-4, noise=numpy.arange(3)),
        "raw": b"bytes",
    }
    torch.save(content, tmp_path / "last.ckpt", pickle_protocol=protocol)
    opened = open_tensor_file(tmp_path / "last.ckpt")
    assert_same(opened, weights)
    assert (opened.layout, opened.nesting) == ("state_dict", (key,))
    assert opened.metadata == {"epoch": 3, "global_step": 1234, "version": "2.1"}
    assert opened.unread == ("optimizer_states", "callbacks", "hyper_parameters", "raw")
    assert {f"{__name__}.Callback", "argparse.Namespace", "pathlib.PurePosixPath"} <= set(opened.ignored)


def test_dicts_of_dicts_are_joined(tmp_path):
    content = {
        "unet": {"a": torch.ones(2)},
        "vae": {"b": {"c": torch.zeros(3)}},
        "steps": [torch.ones(1)],
        "n": 7,
    }
    torch.save(content, tmp_path / "parts.pt")
    opened = open_tensor_file(tmp_path / "parts.pt")
    assert list(opened.tensors) == ["unet.a", "vae.b.c", "steps.0"]
    assert opened.metadata == {"n": 7}


class Network(nn.Module):
    """All that a state dict leaves out or names twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4, bias=False))
        self.attention = nn.MultiheadAttention(4, 2)
        self.again = self.first[0]
        self.blocks = nn.ModuleList([nn.Conv3d(1, 1, 1), nn.ModuleDict({"norm": nn.BatchNorm2d(3)})])
        self.tied = self.first[2].weight
        self.absent = None
        self.register_parameter("none", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.arange(5), persistent=False)
        self.forward = self.bound
        self.started = datetime.date(2026, 1, 2)

    def bound(self, sample: torch.Tensor) -> torch.Tensor:
        return sample


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_whole_networks(tmp_path, protocol, is_zip):
    network = Network()
    path = tmp_path / "network.pt"
    torch.save(network, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    opened = open_tensor_file(path)
    assert_same(opened, network.state_dict())
    assert opened.layout == "module"
    assert opened.module_types[""] == f"{__name__}.Network"
    assert opened.module_types["blocks.1.norm"] == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert {f"{__name__}.Network", "builtins.getattr", "torch.nn.modules.linear.Linear"} <= set(
        opened.ignored
    )


def test_whole_network_below_a_key(tmp_path):
    torch.save({"epoch": 1, "model": nn.Linear(2, 2)}, tmp_path / "network.pt")
    opened = open_tensor_file(tmp_path / "network.pt")
    assert (opened.layout, opened.nesting, list(opened.tensors)) == ("module", ("model",), ["weight", "bias"])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["whole_module_pickle", "whole_module_pickle_conv2d"])
def test_recorded_networks(name):
    """Imitations of AMD's release files, made with the original classes, which are not installed here."""
    opened = open_tensor_file(golden_path(f"{name}/merged_all_tiny.pt"))
    expected = golden_tensors(f"{name}/state_dict")
    temporal_2d = {tensor_name for tensor_name in opened.tensors if ".conv2d." in tensor_name}
    assert bool(temporal_2d) == name.endswith("conv2d")
    for tensor_name, lazy in opened.tensors.items():
        reference = expected.pop(tensor_name.replace(".conv2d.", "."))
        if tensor_name in temporal_2d:
            parent = tensor_name.rpartition(".conv2d.")[0]
            assert opened.module_types[parent] == "__main__.conv3d_to_conv2d"
            reference = reference.reshape(lazy.shape)
        loaded = lazy.load()
        assert loaded.dtype == reference.dtype
        assert torch.equal(loaded, reference), tensor_name
    assert not expected
    assert opened.layout == "module"
    assert "lvdm.models.ddpm3d.LatentDiffusion" in opened.ignored


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Float", torch.float32),
        ("Long", torch.int64),
        ("ComplexFloat", torch.complex64),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
    ],
)
def test_other_byte_order(tmp_path, kind, dtype):
    """An archive from a big-endian machine; its numbers are swapped by numpy here."""
    values = torch.arange(6).to(dtype)
    width = values.dtype.itemsize // (2 if values.dtype.is_complex else 1)
    swapped = bits(values).numpy().view(f"u{width}").byteswap().tobytes()
    source = hostile.storage(numel=6, kind=f"{kind}Storage")
    pickled = hostile.whole(hostile.dict_of({"w": hostile.tensor(source, shape=(2, 2), stride=(3, 2))}))
    path = hostile.save_zip(tmp_path / "big.ckpt", pickled, {"0": swapped}, byte_order=b"big")
    loaded = open_tensor_file(path).tensors["w"].load()
    assert torch.equal(loaded, values.as_strided((2, 2), (3, 2)))


def test_bytes_of_a_bool_become_valid(tmp_path):
    pickled = hostile.whole(hostile.dict_of({"w": hostile.tensor(hostile.storage(kind="BoolStorage"))}))
    path = hostile.save_zip(tmp_path / "bool.ckpt", pickled, {"0": bytes([0, 1, 2, 255])})
    loaded = open_tensor_file(path).tensors["w"].load()
    assert loaded.view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("title", sorted(hostile.wrong_tensors()))
@pytest.mark.parametrize("save", [hostile.save_zip, hostile.save_legacy])
def test_wrong_tensors(tmp_path, title, save):
    pickled, says = hostile.wrong_tensors()[title]
    path = save(tmp_path / "wrong.ckpt", pickled)
    message = outcome(path)
    assert says in message or (save is hostile.save_legacy and "list of storages" in message), message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_wrong_archives(tmp_path):
    for title, (path, says) in hostile.hostile_archives(tmp_path).items():
        message = outcome(path)
        assert re.search(says, message), (title, message)


def outcome(path: Path) -> str:
    """Open a file and read all of its tensors; anything but a CheckpointError escapes and fails the test."""
    try:
        opened = open_tensor_file(path)
        for tensor in opened.tensors.values():
            tensor.load()
    except CheckpointError as error:
        return str(error)
    return "read"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_not_checkpoints(tmp_path, suffix):
    generator = random.Random(0)
    path = tmp_path / f"file{suffix}"
    contents = [b"", b"\x80", b"PK", b"PK\x03\x04", b"x" * 8 + b"{", b"<!DOCTYPE html><html>404</html>"]
    contents += [generator.randbytes(size) for size in (1, 10, 100, 10_000) for _ in range(20)]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            open_tensor_file(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        open_tensor_file(tmp_path / "absent.ckpt")
    with pytest.raises(CheckpointError, match="not a file"):
        open_tensor_file(tmp_path)


SAFETENSORS_ENTRY = '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ('{"w":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}', "broken"),
        ('{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}', "broken"),
        ('{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,160]}}', "broken"),
        (
            '{"w":{"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}',
            "broken|torch cannot",
        ),
        ('{"w":{"dtype":"F4","shape":[32],"data_offsets":[0,16]}}', "F4|broken"),
        (f'{{"w":{SAFETENSORS_ENTRY},"v":{SAFETENSORS_ENTRY}}}', "broken"),
        (f'{{"w":{SAFETENSORS_ENTRY},"w":{SAFETENSORS_ENTRY}}}', "twice|broken"),
        ('{"w":' + "[" * 100_000, "broken"),
        ("{}", "no tensors|broken"),
        ("{", "broken"),
    ],
)
def test_wrong_safetensors(tmp_path, header, says):
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + hostile.floats(4))
    with pytest.raises(CheckpointError, match=says):
        open_tensor_file(path)


def test_safetensors_header_is_bounded(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match="header of 1099511627776 bytes"):
        open_tensor_file(path)


def test_file_that_shrinks(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.zeros(1000)}, path)
    opened = open_tensor_file(path)
    os.truncate(path, 1500)
    with pytest.raises(CheckpointError, match="cut off or changed"):
        opened.tensors["w"].load()


def small_files(folder: Path) -> list[bytes]:
    """One file of each kind, small, so that few of its bytes are mere numbers."""
    path = folder / "small"
    weights = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).half(), "view": torch.arange(6)[::2]}
    files = []
    for is_zip in (True, False):
        for content in ({"state_dict": weights, "epoch": 1}, list(weights.values()), nn.Linear(2, 2)):
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
            files.append(path.read_bytes())
    save_file({"w": weights["a.weight"], "b": weights["a.bias"]}, path, metadata={"a": "b"})
    return [*files, path.read_bytes()]


@pytest.mark.parametrize("kind", range(7))
def test_flipped_bits_and_cut_files(tmp_path, kind):
    content = small_files(tmp_path)[kind]
    source = random.Random(kind)
    path = tmp_path / "fuzzed"
    outcomes = []
    for attempt in range(NUM_FUZZED):
        changed = bytearray(content)
        for _ in range(source.choice([1, 1, 2, 8])):
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
        if attempt % 10 == 0:
            del changed[source.randrange(len(changed)) :]
        path.write_bytes(changed)
        outcomes.append(outcome(path))
    assert 0 < outcomes.count("read") < NUM_FUZZED  # a flip in a tensor's numbers does no harm
    assert not [message for message in outcomes if "\n" in message]


def test_flipped_bits_of_pickles(tmp_path):
    """In an archive whose directory is intact, so that every flip reaches the pickle."""
    source = random.Random(0)
    pickles = [
        hostile.whole(hostile.dict_of({"state_dict": hostile.dict_of({"w": hostile.tensor()})})),
        hostile.whole(hostile.module()),
    ]
    for attempt in range(2 * NUM_FUZZED):
        changed = bytearray(pickles[attempt % 2])
        for _ in range(source.choice([1, 2, 4])):
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
        outcome(hostile.save_zip(tmp_path / "fuzzed", bytes(changed)))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes by Linux's /proc")
def test_opening_reads_the_directory_only(tmp_path):
    """Of a file of a gigabyte (a hole on disk), a few hundred kilobytes; of a tensor, its own bytes."""
    path = tmp_path / "large.ckpt"
    weights = {f"block.{index}.weight": torch.empty(512, 1024, dtype=torch.float16) for index in range(1024)}
    with torch.serialization.skip_data():
        torch.save({"state_dict": weights}, path)
    assert path.stat().st_size > 2**30
    before = bytes_read()
    opened = open_tensor_file(path)
    opening = bytes_read() - before
    opened.tensors["block.500.weight"].load()
    loading = bytes_read() - before - opening
    assert opening < 500_000
    assert 2**20 <= loading < 2**20 + 10_000


def bytes_read() -> int:
    """Bytes that this process has asked the system for, from any file."""
    return int(Path("/proc/self/io").read_text().split()[1])
