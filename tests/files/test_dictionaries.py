import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cbm.errors import UserError
from cbm.files.dictionaries import Dictionary, read_dictionary, write_dictionary
from cbm.files.tensors import write_tensors

K, D = 12, 5


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def code(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Reference: what a dictionary says it computes."""
    x = x * (dictionary.scale or 1) - (dictionary.mean if dictionary.subtracts else 0)
    h = x @ dictionary.encoder.T + dictionary.encoder_bias
    if dictionary.threshold is not None:
        return torch.where(h > dictionary.threshold, h, 0)
    if dictionary.k is not None:
        top = h.topk(dictionary.k)
        h = torch.zeros_like(h).scatter(1, top.indices, top.values)
    return h.relu()


# ------------------------------------------------------------------------------------------------------------- ours


def whole() -> Dictionary:
    return Dictionary(made(K, D), made(D, seed=1), made(K, D, seed=2), made(K, seed=3), made(K, seed=4).abs(), 3, 2.5,
                      True, "saev, ViT-L/14")  # fmt: skip


def test_written_and_read_again(tmp_path: Path):
    for number, dictionary in enumerate((whole(), Dictionary(made(K, D), torch.zeros(D)))):
        write_dictionary(tmp_path / f"{number}.safetensors", dictionary)
        again = read_dictionary(tmp_path / f"{number}.safetensors", dim=D)
        assert len(again) == K
        assert again.dim == D
        for name, value in vars(dictionary).items():
            found = getattr(again, name)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    assert read_dictionary(tmp_path / "0.safetensors").subtracts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": made(K)}, r"mean is \[12\], expected \[5\] for 12 atoms of 5 features"),
        ({"encoder": made(D, K)}, r"encoder is \[5, 12\], expected \[12, 5\]"),
        ({"encoder_bias": None}, "an encoder and its bias belong together"),
        ({"threshold": torch.full((K,), torch.nan)}, r"threshold has 12 NaN or infinite value\(s\)"),
        ({"atoms": torch.zeros(K, D, dtype=torch.int64)}, "atoms holds torch.int64"),
        ({"atoms": made(K)}, r"its atoms are \[12\], expected \[K, D\]"),
        ({"k": K + 1}, "k is 13, expected 1 to 12"),
        ({"scale": 0.0}, "scale is 0.0, expected a number above 0"),
    ],
)
def test_what_does_not_fit_together_is_not_written(tmp_path: Path, change, said):
    broken = Dictionary(**{**vars(whole()), **change})
    with pytest.raises(UserError, match=said):
        write_dictionary(tmp_path / "d.safetensors", broken)
    assert not (tmp_path / "d.safetensors").exists()


def test_another_width_no_file_and_damage(tmp_path: Path):
    path = tmp_path / "mine.safetensors"
    write_dictionary(path, whole())
    with pytest.raises(UserError, match="a dictionary for 5 features, but there are 768: was it made with another"):
        read_dictionary(path, dim=768)
    with pytest.raises(UserError, match=r"no dictionary '.*mime.safetensors': did you mean 'mine.safetensors'"):
        read_dictionary(tmp_path / "mime.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(UserError, match="is damaged"):
        read_dictionary(path)
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(UserError, match="checksum"):
        read_dictionary(path)
    write_tensors(path, {"mean": made(D)}, {"kind": "dictionary"})
    with pytest.raises(UserError, match="a dictionary without 'atoms'"):
        read_dictionary(path)
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(UserError, match=r"features are read from|\.npy"):
        read_dictionary(tmp_path / "notes.md")


# ------------------------------------------------------------------------------------------------------------- saev


def saev_file(path: Path, header: dict, extra: dict | None = None, cut: int = 0) -> dict[str, torch.Tensor]:
    """A line of JSON, then a state dict, as saev's ``dump`` writes them."""
    state = {"W_dec": made(K, D), "b_dec": made(D, seed=1), "W_enc": made(D, K, seed=2), "b_enc": made(K, seed=3)}
    with path.open("wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        torch.save({**state, **(extra or {})}, file)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return state


def saev_header(cls: str, params: dict, schema: int = 5) -> dict:
    config = {"d_model": D, "d_sae": K, "activation": {"cls": cls, "params": params}}
    return {"schema": schema, "cfg": config, "commit": "3d73f1f", "lib": "0.1.0"}


def test_saev_topk(tmp_path: Path):
    state = saev_file(tmp_path / "sae.pt", saev_header("TopK", {"top_k": 4, "aux": {"cls": "AuxK", "params": {}}}))
    found = read_dictionary(tmp_path / "sae.pt", dim=D)
    assert found.k == 4
    assert found.threshold is None
    assert found.scale is None
    assert not found.subtracts
    assert found.source == "sae.pt (saev)"
    assert torch.equal(found.atoms, state["W_dec"])
    assert torch.equal(found.mean, state["b_dec"])
    x = made(20, D, seed=9)
    h = x @ state["W_enc"] + state["b_enc"]  # einsum("... d_model, d_model d_sae") of its encode
    top = h.topk(4)
    torch.testing.assert_close(code(found, x), torch.zeros_like(h).scatter(1, top.indices, top.values).relu())


def test_saev_batch_topk_fires_above_a_threshold_at_test(tmp_path: Path):
    header = saev_header("BatchTopK", {"top_k": 4, "momentum": 0.1})
    state = saev_file(tmp_path / "sae.pt", header, {"activation.threshold": torch.tensor(0.7)})
    found = read_dictionary(tmp_path / "sae.pt")
    assert found.k is None
    assert torch.equal(found.threshold, torch.full((K,), 0.7))
    x = made(20, D, seed=9)
    h = x @ state["W_enc"] + state["b_enc"]
    torch.testing.assert_close(code(found, x), torch.where(h > 0.7, h, 0))
    saev_file(tmp_path / "sae.pt", header, {"activation.threshold": torch.tensor(0.0)})
    assert read_dictionary(tmp_path / "sae.pt").threshold is None  # as ReLU
    saev_file(tmp_path / "sae.pt", saev_header("BatchTopK", {"top_k": 4}, schema=2))  # before there was a threshold
    assert read_dictionary(tmp_path / "sae.pt").k == 4


@pytest.mark.parametrize(
    ("header", "k", "subtracts"),
    [
        ({"d_vit": D, "exp_factor": 2, "sparsity_coeff": 1e-4, "ghost_grads": False}, None, True),
        ({"schema": 1, "cls": "Relu", "cfg": {"d_vit": D}, "commit": "x", "lib": "y"}, None, True),
        ({"schema": 1, "cls": "TopK", "cfg": {"d_vit": D, "top_k": 6}, "commit": "x", "lib": "y"}, 6, True),
        ({**saev_header("Relu", {}, 1), "cls": "SparseAutoencoderConfig"}, None, False),
        (saev_header("Relu", {}, 2), None, False),
    ],
)
def test_saev_of_old(tmp_path: Path, header, k, subtracts):
    saev_file(tmp_path / "sae.pt", header)
    found = read_dictionary(tmp_path / "sae.pt")
    assert found.k == k
    assert found.subtracts == subtracts


def test_saev_mistakes(tmp_path: Path):
    path = tmp_path / "sae.pt"
    saev_file(path, saev_header("JumpRelu", {}))
    with pytest.raises(UserError, match="saev's activation 'JumpRelu' is not known"):
        read_dictionary(path)
    saev_file(path, saev_header("TopK", {"top_k": "many"}))
    with pytest.raises(UserError, match="the number of units that fire is 'many'"):
        read_dictionary(path)
    saev_file(path, saev_header("TopK", {}), {"W_skip": made(D, D)})
    with pytest.raises(UserError, match="is of saev, but has 'W_skip' too"):
        read_dictionary(path)
    saev_file(path, saev_header("TopK", {}), cut=900)
    with pytest.raises(UserError, match="cannot be read"):
        read_dictionary(path)
    path.write_text('{"schema": 5, "cfg"')
    with pytest.raises(UserError, match="first line is not JSON"):
        read_dictionary(path)


# ------------------------------------------------------------------------------------------------- SAELens and Prisma


def saelens(folder: Path, config: dict | None, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """``sae_weights.safetensors`` and ``cfg.json``."""
    folder.mkdir(exist_ok=True)
    state = {"W_enc": made(D, K), "W_dec": made(K, D, seed=1), "b_enc": made(K, seed=2), "b_dec": made(D, seed=3)}
    save_file({name: each.contiguous() for name, each in {**state, **more}.items()}, folder / "sae_weights.safetensors")
    save_file({"sparsity": made(K)}, folder / "sparsity.safetensors")
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": K, "dtype": "float32", **config}))
    return state


def test_saelens_standard_and_prisma(tmp_path: Path):
    x = made(20, D, seed=9)
    for config, subtracts in (
        ({"architecture": "standard", "activation_fn_str": "relu"}, True),  # subtracting is the default
        ({"architecture": "standard", "apply_b_dec_to_input": False, "normalize_activations": "none"}, False),
        ({"activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": True}, True),
    ):
        state = saelens(tmp_path / "sae", config)
        found = read_dictionary(tmp_path / "sae", dim=D)
        assert found.subtracts == subtracts
        assert found.scale is None
        assert found.k is None
        pre = (x - state["b_dec"] * subtracts) @ state["W_enc"] + state["b_enc"]
        torch.testing.assert_close(code(found, x), pre.relu())
        assert torch.equal(read_dictionary(tmp_path / "sae" / "sae_weights.safetensors").atoms, state["W_dec"])
    (tmp_path / "sae" / "cfg.json").rename(tmp_path / "sae" / "config.json")  # Prisma's name
    assert read_dictionary(tmp_path / "sae").subtracts


def test_saelens_topk(tmp_path: Path):
    for config in (
        {"architecture": "topk", "k": 3},
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
    ):
        saelens(tmp_path / "sae", config)
        assert read_dictionary(tmp_path / "sae").k == 3
    state = saelens(tmp_path / "sae", {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True})
    found = read_dictionary(tmp_path / "sae")
    x = made(20, D, seed=9)
    norm = state["W_dec"].norm(dim=1)
    pre = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]) * norm
    top = pre.topk(3)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(code(found, x), acts)
    torch.testing.assert_close(code(found, x) @ found.atoms, acts / norm @ state["W_dec"])


def test_saelens_thresholds_and_scale(tmp_path: Path):
    threshold = made(K, seed=5).abs()
    state = saelens(tmp_path / "sae", {"architecture": "jumprelu"}, threshold=threshold)
    found = read_dictionary(tmp_path / "sae")
    assert torch.equal(found.threshold, threshold)
    x = made(20, D, seed=9)
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    torch.testing.assert_close(code(found, x), pre.relu() * (pre > threshold))
    saelens(tmp_path / "sae", {"architecture": "jumprelu"}, log_threshold=threshold.log())
    torch.testing.assert_close(read_dictionary(tmp_path / "sae").threshold, threshold)
    saelens(tmp_path / "sae", {"architecture": "batchtopk", "k": 2.0}, topk_threshold=torch.tensor(0.4))
    found = read_dictionary(tmp_path / "sae")
    assert torch.equal(found.threshold, torch.full((K,), 0.4))
    assert found.k is None
    for normalisation in ("constant_norm_rescale", "expected_average_only_in"):
        saelens(tmp_path / "sae", {"architecture": "standard", "normalize_activations": normalisation})
        assert read_dictionary(tmp_path / "sae").scale == pytest.approx(D**0.5)


def test_saelens_mistakes(tmp_path: Path):
    folder = tmp_path / "sae"

    def refused(config: dict | None, said: str, **more: torch.Tensor) -> None:
        saelens(folder, config, **more)
        with pytest.raises(UserError, match=said):
            read_dictionary(folder)

    refused(None, r"is read with the cfg\.json that SAELens and Prisma put beside it, and there is none")
    refused({"architecture": "gated"}, "is a gated autoencoder", b_gate=made(K))
    refused({"architecture": "temporal"}, "architecture 'temporal' with 'relu': expected one of standard, topk")
    refused({"activation_fn_str": "tanh-relu"}, "with 'tanh-relu'")
    refused({"architecture": "topk"}, r"cfg\.json does not say k")
    refused({"architecture": "jumprelu"}, "'jumprelu', but has no 'threshold'")
    refused({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm', expected none")
    refused({}, r"W_enc is \[12, 5\] and W_dec is \[12, 5\], expected \[D, K\] and \[K, D\]", W_enc=made(K, D))
    refused({}, r"b_enc|encoder_bias is \[5\], expected \[12\]", b_enc=made(D))
    refused(
        {},
        r"encoder has 1 NaN",
        W_enc=made(D, K).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)),
    )
    refused({}, "scales its units afterwards", scaling_factor=2 * torch.ones(K))
    refused({}, "has 'W_skip' too, which is not known", W_skip=made(D, D))
    save_file({"W_enc": made(D, K), "b_enc": made(K)}, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=r"has an encoder \(W_enc, b_enc\), but no decoder that is known"):
        read_dictionary(folder)
    (folder / "sae_weights.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match="found several: other.safetensors, sparsity.safetensors; name one"):
        read_dictionary(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found none"):
        read_dictionary(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------------- overcomplete


class DictionaryLayer(nn.Module):
    """The parameter of overcomplete's class of that name."""

    def __init__(self):
        super().__init__()
        self._weights = nn.Parameter(nn.functional.normalize(made(K, D), dim=1))


class MLPEncoder(nn.Module):
    """The parameters of overcomplete's class of that name."""

    def __init__(self, blocks: int = 1, norm_layer: Callable[[int], nn.Module] = lambda size: nn.Identity()):
        super().__init__()
        hidden = [nn.Sequential(nn.Linear(D, D), norm_layer(D), nn.ReLU()) for _ in range(blocks - 1)]
        self.mlp_blocks = nn.ModuleList(hidden)
        self.final_block = nn.Sequential(nn.Linear(D, K), norm_layer(K))
        self.final_activation = nn.ReLU()

    def forward(self, x):
        return self.final_activation(self.final_block(x))


class Overcomplete(nn.Module):
    def __init__(self, encoder: nn.Module, dictionary: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder
        self.dictionary = dictionary or DictionaryLayer()


def test_overcomplete(tmp_path: Path):
    x = made(20, D, seed=9)
    for encoder in (MLPEncoder(), nn.Sequential(nn.Linear(D, K), nn.ReLU()), nn.Linear(D, K)):
        sae = Overcomplete(encoder)
        torch.save(sae.state_dict(), tmp_path / "sae.pth")
        found = read_dictionary(tmp_path / "sae.pth", dim=D)
        with torch.no_grad():
            torch.testing.assert_close(code(found, x), encoder(x).relu())
        torch.testing.assert_close(found.atoms, sae.dictionary._weights.detach())
        assert not found.subtracts
        assert not found.mean.any()
        assert found.source == "sae.pth (overcomplete)"
    torch.save({"epoch": 3, "state_dict": sae.state_dict()}, tmp_path / "sae.pth")  # in a checkpoint
    assert read_dictionary(tmp_path / "sae.pth").dim == D
    torch.save(Overcomplete(nn.Identity()).state_dict(), tmp_path / "sae.pth")
    assert read_dictionary(tmp_path / "sae.pth").encoder is None


def test_overcomplete_atoms_are_of_unit_norm_where_they_nearly_are(tmp_path: Path):
    sae = Overcomplete(MLPEncoder())
    sae.dictionary._weights.data *= 1.01  # a step of the optimiser after they were brought to unit norm
    torch.save(sae.state_dict(), tmp_path / "sae.pt")
    torch.testing.assert_close(read_dictionary(tmp_path / "sae.pt").atoms.norm(dim=1), torch.ones(K))
    sae.dictionary._weights.data *= 3  # another normalisation
    torch.save(sae.state_dict(), tmp_path / "sae.pt")
    torch.testing.assert_close(read_dictionary(tmp_path / "sae.pt").atoms, sae.dictionary._weights.detach())


def test_overcomplete_jump_and_archetypal(tmp_path: Path):
    sae = Overcomplete(MLPEncoder())
    sae.thresholds = nn.Parameter(made(K, seed=4))
    torch.save(sae.state_dict(), tmp_path / "sae.pt")
    torch.testing.assert_close(read_dictionary(tmp_path / "sae.pt").threshold, made(K, seed=4).exp())

    class RelaxedArchetypalDictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("C", made(20, D))
            self.W = nn.Parameter(made(K, 20, seed=1))
            self.Relax = nn.Parameter(0.1 * made(K, D, seed=2))
            self.multiplier = nn.Parameter(torch.tensor(0.3))

    torch.save(Overcomplete(MLPEncoder(), RelaxedArchetypalDictionary()).state_dict(), tmp_path / "ra.pt")
    share = made(K, 20, seed=1).relu()
    expected = (share / share.sum(1, keepdim=True) @ made(20, D) + 0.1 * made(K, D, seed=2)) * np.exp(0.3)
    torch.testing.assert_close(read_dictionary(tmp_path / "ra.pt").atoms, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        (MLPEncoder(norm_layer=nn.BatchNorm1d), "encoder.final_block.1"),
        (MLPEncoder(norm_layer=nn.LayerNorm), "encoder.final_block.1"),
        (MLPEncoder(blocks=2), "encoder.mlp_blocks.0.0.weight"),
        (nn.Sequential(nn.Linear(D, K), nn.BatchNorm1d(K), nn.ReLU()), "encoder.1"),
        (nn.Sequential(nn.Linear(D, K), nn.ReLU(), nn.Linear(K, K)), "encoder.2"),
    ],
)
def test_overcomplete_encoders_that_are_not_one_linear_layer(tmp_path: Path, encoder, named):
    torch.save(Overcomplete(encoder).state_dict(), tmp_path / "sae.pt")
    with pytest.raises(UserError, match=rf"'{named}.*: read is one linear layer without normalisation, such as MLP"):
        read_dictionary(tmp_path / "sae.pt")


def test_overcomplete_mistakes(tmp_path: Path):
    sae = Overcomplete(MLPEncoder())
    torch.save(sae, tmp_path / "sae.pt")  # the module itself
    with pytest.raises(
        UserError, match=r"Python objects, which are not loaded.*torch\.save\(sae\.state_dict\(\), FILE\)"
    ):
        read_dictionary(tmp_path / "sae.pt")
    torch.save({**sae.state_dict(), "running_threshold": torch.ones(1)}, tmp_path / "sae.pt")
    with pytest.raises(UserError, match="is of overcomplete, but has 'running_threshold' too"):
        read_dictionary(tmp_path / "sae.pt")
    torch.save(Overcomplete(nn.Linear(D + 1, K)).state_dict(), tmp_path / "sae.pt")
    with pytest.raises(UserError, match=r"encoder of overcomplete is \[12, 6\], its dictionary \[12, 5\]"):
        read_dictionary(tmp_path / "sae.pt")
    whole = (tmp_path / "sae.pt").read_bytes()
    (tmp_path / "sae.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        read_dictionary(tmp_path / "sae.pt")
    state = {f"{layer}/{name}": each for layer in ("one", "two") for name, each in sae.state_dict().items()}
    torch.save(state, tmp_path / "sae.pt")
    with pytest.raises(UserError, match="expected one matrix of atoms|several dictionaries"):
        read_dictionary(tmp_path / "sae.pt")


# ------------------------------------------------------------------------------- Discover-then-Name, sparse_autoencoder


def sparse_autoencoder(axis: bool = True, mark: str = "_") -> dict[str, torch.Tensor]:
    """The state dict of sparse_autoencoder's ``SparseAutoencoder``, with or without its component axis."""
    bias = made(D, seed=3)
    state = {
        "tied_bias": bias,
        "pre_encoder_bias._bias_reference": bias,
        f"encoder.{mark}weight": made(K, D),
        f"encoder.{mark}bias": made(K, seed=1),
        f"decoder.{mark}weight": nn.functional.normalize(made(D, K, seed=2), dim=0),
        "post_decoder_bias._bias_reference": bias,
    }
    return {name: each[None] if axis else each for name, each in state.items()}


def test_discover_then_name(tmp_path: Path):
    x = made(20, D, seed=9)
    for axis, mark in ((True, "_"), (True, ""), (False, "_"), (False, "")):
        state = sparse_autoencoder(axis, mark)
        torch.save(state, tmp_path / "sparse_autoencoder_final.pt")
        found = read_dictionary(tmp_path / "sparse_autoencoder_final.pt", dim=D)
        weight, bias, tied = made(K, D), made(K, seed=1), made(D, seed=3)
        torch.testing.assert_close(code(found, x), ((x - tied) @ weight.T + bias).relu())
        assert found.subtracts
        torch.testing.assert_close(found.mean, tied)
        torch.testing.assert_close(found.atoms, state[f"decoder.{mark}weight"].squeeze().T)
        torch.testing.assert_close(found.atoms.norm(dim=1), torch.ones(K))
    torch.save({f"_{name}": each for name, each in sparse_autoencoder(False).items()}, tmp_path / "old.pt")
    assert torch.equal(read_dictionary(tmp_path / "old.pt").atoms, found.atoms)


def test_as_many_units_as_features_are_told_apart_by_name(tmp_path: Path):
    encoder, decoder = made(D, D), made(D, D, seed=1)
    torch.save({"encoder._weight": encoder[None], "decoder._weight": decoder[None]}, tmp_path / "sae.pt")
    found = read_dictionary(tmp_path / "sae.pt")
    assert torch.equal(found.encoder, encoder)
    assert torch.equal(found.atoms, decoder.T)
    assert not found.subtracts
    np.save(tmp_path / "found.npy", made(D, D).numpy())
    with pytest.raises(UserError, match=r"found is 5 x 5: whether its rows or its columns are atoms cannot be told"):
        read_dictionary(tmp_path / "found.npy", dim=D)
    np.save(tmp_path / "atoms.npy", made(D, D).numpy())
    assert torch.equal(read_dictionary(tmp_path / "atoms.npy").atoms, made(D, D))


def test_discover_then_name_mistakes(tmp_path: Path):
    def refused(change: dict[str, torch.Tensor | None], said: str) -> None:
        state = {**sparse_autoencoder(), **change}
        torch.save({name: each for name, each in state.items() if each is not None}, tmp_path / "sae.pt")
        with pytest.raises(UserError, match=said):
            read_dictionary(tmp_path / "sae.pt")

    refused({"decoder._weight": None}, r"has an encoder \(tied_bias.*but no decoder that is known")
    refused({"encoder._weight": made(1, D, K)}, r"encoder\.weight is \[5, 12\] and decoder\.weight \[5, 12\]")
    refused({"encoder._weight": made(3, K, D)}, r"'encoder\.weight' is \[3, 12, 5\], expected one component")
    refused({"post_decoder_bias._bias_reference": made(1, D, seed=8)}, "differ, and are one by design")
    refused({"tied_bias": made(1, K)}, "differ")
    refused({"encoder.second": made(1, K)}, "has 'encoder.second' too, which is not known")
    refused({"encoder._bias": torch.full((1, K), torch.inf)}, "encoder_bias has 12 NaN or infinite")


# ------------------------------------------------------------------------------------------------------------ a matrix


def test_a_matrix_of_atoms(tmp_path: Path):
    atoms = made(K, D)
    np.save(tmp_path / "a.npy", atoms.double().numpy())
    np.save(tmp_path / "turned.npy", atoms.half().T.numpy())
    np.savez(tmp_path / "b.npz", centroids=atoms.numpy(), counts=np.arange(K), names=np.array(["x"] * K))
    save_file({"components": atoms, "mean": made(D, seed=1), "other": made(3, 3)}, tmp_path / "c.safetensors")
    torch.save(atoms, tmp_path / "d.pt")
    torch.save({"decoder.weight": atoms.T.contiguous()}, tmp_path / "e.pt")
    for name in ("a.npy", "b.npz", "c.safetensors", "d.pt", "e.pt"):
        found = read_dictionary(tmp_path / name)
        assert torch.equal(found.atoms, atoms), name
        assert found.atoms.dtype == torch.float32
        assert found.encoder is None
        assert found.subtracts == (name[0] == "c")
        assert torch.equal(found.mean, made(D, seed=1) if name[0] == "c" else torch.zeros(D))
    torch.testing.assert_close(read_dictionary(tmp_path / "turned.npy", dim=D).atoms, atoms.half().float())
    assert read_dictionary(tmp_path / "turned.npy").dim == K  # one atom a row, unless the width is known
    with pytest.raises(UserError, match="for 5 features, but there are 7"):
        read_dictionary(tmp_path / "a.npy", dim=7)
    assert read_dictionary(tmp_path / "a.npy").source == "a.npy"


def test_matrices_that_are_none(tmp_path: Path):
    np.savez(tmp_path / "two.npz", one=made(K, D).numpy(), other=made(K, D).numpy())
    np.save(tmp_path / "numbers.npy", np.zeros((K, D), "i8"))
    np.save(tmp_path / "cube.npy", made(2, K, D).numpy())
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((K, D), np.nan, "f4"))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cube.npy").read_bytes()[:-7])
    (tmp_path / "text.npy").write_text("atoms")
    for name, said in {
        "two.npz": "expected one matrix of atoms .K, D., found 2: one, other; read are saev",
        "numbers.npy": "holds torch.int64: expected floating-point atoms",
        "cube.npy": "found none .cube.",
        "objects.npy": "found none .nothing.",
        "nan.npy": "atoms has 60 NaN or infinite",
        "cut.npy": "cannot be read",
        "text.npy": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=said):
            read_dictionary(tmp_path / name)


def test_nothing_in_a_file_is_executed(tmp_path: Path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"W_dec": Bomb()}))
    torch.save({"W_dec": Bomb()}, tmp_path / "zipped.pt")
    header = (json.dumps(saev_header("TopK", {})) + "\n").encode()
    (tmp_path / "saev.pt").write_bytes(header + (tmp_path / "zipped.pt").read_bytes())
    for name in ("bomb.pt", "zipped.pt", "saev.pt"):
        with pytest.raises(UserError, match="Python objects, which are not loaded"):
            read_dictionary(tmp_path / name)
    assert not (tmp_path / "run").exists()
