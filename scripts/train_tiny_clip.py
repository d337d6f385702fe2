"""Train the bundled tiny CLIP on captions of random paper birds and write it in open_clip's format.

    python scripts/train_tiny_clip.py --minutes 30 --out cbm/encoders/tiny_clip --seed 0

The birds have independent, uniform attributes and belong to no species; a caption names one to four attributes of a
bird in varying words. Because the truth is known, a caption is a positive for *every* bird in the batch that it fits.
The loss is CLIP's softmax in both directions with these many positives, plus a softmax over the values of each
attribute group, all with the one learned logit scale that is stored with the model. From scratch the two towers would
wait for each other; so in a warm-up (the first 40 % of the time) each of them is trained towards one shared free vector
per concept, which is then thrown away.

Kept from training, for the evaluation: one in ten pairs of concepts (never together in a caption), one in eight pairs
of synonyms (such as "crimson" with "cap"), and two of the sentence templates. The numbers in ``card.json`` and
``README.md`` are measured by this script on the files as written, on birds of a different seed.
"""

import argparse
import json
import math
import random
import string
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cbm.data.birds import ATTRIBUTES, CONCEPTS, concepts_of, random_birds

# --------------------------------------------------------------------------------------------------------------------
# captions: a concept is an adjective and a noun, each with synonyms; the first of each list is the word of the concept

COLOURS = {
    "white": ["white", "ivory", "pure white"],
    "yellow": ["yellow", "lemon-yellow", "golden", "bright yellow"],
    "red": ["red", "scarlet", "crimson", "bright red"],
    "blue": ["blue", "azure", "cobalt", "deep blue"],
    "brown": ["brown", "chestnut", "earthy brown"],
    "black": ["black", "jet-black", "sooty", "ebony"],
    "grey": ["grey", "gray", "ashy", "slate-grey"],
    "green": ["green", "emerald", "leaf-green"],
    "orange": ["orange", "tangerine", "bright orange"],
}
NOUNS = {
    "breast colour": ["breast", "chest"],
    "belly colour": ["belly", "underside", "stomach", "underparts"],
    "wing colour": ["wing", "wings"],
    "wing pattern": ["wing", "wings", "wing feathers"],
    "crown colour": ["crown", "cap", "top of the head"],
    "cheek colour": ["cheeks", "face", "sides of the head"],
    "beak shape": ["beak", "bill"],
    "beak colour": ["beak", "bill"],
    "tail shape": ["tail", "tail feathers"],
    "tail colour": ["tail", "tail feathers"],
    "leg length": ["legs"],
    "leg colour": ["legs", "legs and feet"],
    "size": ["bird"],
}
PLURAL = {
    "wings",
    "underparts",
    "wing feathers",
    "cheeks",
    "sides of the head",
    "tail feathers",
    "legs",
    "legs and feet",
}
ADJECTIVES = {
    "wing pattern": {
        "plain": ["plain", "unmarked", "uniform"],
        "barred": ["barred", "banded", "cross-striped"],
        "spotted": ["spotted", "dotted", "speckled"],
        "streaked": ["streaked", "lined", "finely streaked"],
    },
    "beak shape": {
        "short": ["short conical", "stubby conical", "short thick", "cone-shaped"],
        "thin": ["long thin", "slender pointed", "needle-like", "long narrow"],
        "hooked": ["hooked", "curved down", "parrot-like"],
        "flat": ["broad flat", "spoon-like", "wide flat", "duck-like"],
    },
    "tail shape": {
        "short": ["short", "stubby", "small"],
        "long": ["long", "long trailing", "straight long"],
        "forked": ["forked", "split", "swallow-like"],
        "fan": ["fan-shaped", "fanned", "spread", "wide fan-shaped"],
    },
    "leg length": {"short": ["short", "low", "stubby"], "long": ["long", "tall", "stilt-like"]},
    "size": {"small": ["small", "little", "tiny"], "large": ["large", "big", "bulky"]},
}
WHOLE = {  # phrases that do not come apart
    "eye": {
        "plain": ["plain eye", "dark eye with no ring", "simple dark eye", "eye without a ring"],
        "white": ["white eye ring", "white ring around the eye", "eye ringed in white", "pale eye ring"],
        "red": ["red eye ring", "red ring around the eye", "eye ringed in red", "scarlet eye ring"],
    },
    "crest": {
        "smooth": ["smooth round head", "no crest", "rounded head without a crest", "crestless head"],
        "pointed": ["pointed crest", "spiky crest", "swept-back crest on the head", "crest like a pointed hood"],
        "plume": ["curled plume", "curly plume on the head", "curved topknot", "plume curling over the head"],
    },
    "habitat": {
        "water": [
            "water in background",
            "standing by the water",
            "on a lake",
            "in a pond",
            "by the sea",
            "at the river",
        ],
        "grass": ["grass in background", "standing on the grass", "in a meadow", "in a green field", "on a lawn"],
        "forest": ["forest in background", "perched in the forest", "among the trees", "in the woods", "in a wood"],
        "sand": ["sand in background", "standing on sand", "in the desert", "on a sand dune", "in a dry sandy place"],
        "snow": ["snow in background", "standing in the snow", "in winter", "on a snowy day", "in a white snowfield"],
        "sky": [
            "sky in background",
            "perched against the sky",
            "under a cloudy sky",
            "with clouds behind",
            "up in the sky",
        ],
    },
}
FILLERS = """
the and of in to is it that for was on are with as his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never
us left end along while might next sound below saw something thought both few those always looked show large often
together asked house world going want school important until form food keep children feet land side without boy once
animals life enough took sometimes four head above kind began almost live page got earth need far hand high year
mother light parts country father let night following picture being study second eyes soon times story boys since
white days ever paper hard near sentence better best across during today others however sure means knew try told
young miles sun ways thing whole hear example heard several change answer room sea against top turned learn point
city play toward five using himself usually money seen car morning bird birds photo image drawing cartoon picture
species animal feather feathers creature wild close view blurry bright dark sharp nice pretty beautiful common rare
male female adult young looking facing left right sitting flying swimming singing eating nest egg insect fish seed
fruit flower branch rock summer spring autumn rain wind cold warm mountain hill garden park road stone leaf cat dog
horse cow plane truck ship boat train person woman girl child colour color pattern shape texture short thick thin
round flat pointed soft hard purple pink cream silver gold beige tan teal violet striped stripe stripes spots bars
streaks dots mottled glossy dull
"""

TEMPLATES = (
    "{}", "a bird with {}", "a picture of a bird with {}", "a photo of a bird with {}", "this bird has {}", "bird, {}",
    "an image of a bird that has {}", "a drawing showing a bird with {}", "look at the bird with {}", "it has {}",
)  # fmt: skip
WARM_UP = 0.4  # of the training time
HELD_OUT_TEMPLATES = ("we see a bird that shows {}", "here is one with {}")

_KEYS = [(group, value) for group, values in ATTRIBUTES.items() for value in values]  # one per concept


def held_out(*parts: object, one_in: int) -> bool:
    """Whether a combination is kept from training; a fixed hash, the same in every process."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % one_in == 0


def held_out_pair(a: int, b: int) -> bool:
    """Whether concepts ``a`` and ``b`` never appear together in a training caption."""
    return held_out(min(a, b), max(a, b), one_in=10)


def describe(concept: int, rng: random.Random, training: bool = True) -> str:
    """Words for one concept, such as "a lemon-yellow underside"; no held-out pair of synonyms when ``training``."""
    group, value = _KEYS[concept]
    if rng.random() < 0.3:
        return CONCEPTS[concept]
    if group in WHOLE:
        return rng.choice(WHOLE[group][value])
    while True:
        adjective = rng.choice(ADJECTIVES[group][value] if group in ADJECTIVES else COLOURS[value])
        noun = rng.choice(NOUNS[group])
        if not (training and f"{adjective} {noun}" != CONCEPTS[concept] and held_out(adjective, noun, one_in=8)):
            break
    if "of the" in noun or rng.random() < 0.2:  # "top of the head is red"
        return f"{noun} {'are' if noun in PLURAL else 'is'} {adjective}"
    article = "" if noun in PLURAL or rng.random() < 0.5 else "an " if adjective[0] in "aeiou" else "a "
    return f"{article}{adjective} {noun}"


def caption(concepts: list[int], rng: random.Random, training: bool = True) -> str:
    """A sentence that states all of ``concepts``."""
    parts = [describe(c, rng, training) for c in concepts]
    if training and len(parts) == 1 and rng.random() < 0.4:
        text = parts[0]
    else:
        joined = parts[0]
        for part in parts[1:]:
            joined += rng.choice((" and ", ", ", " and its ", " with ")) + part
        text = rng.choice(TEMPLATES if training else HELD_OUT_TEMPLATES).format(joined)
    if training and rng.random() < 0.15:  # words that say nothing about the bird, known or made up
        words = text.split()
        for _ in range(rng.randint(1, 2)):
            made_up = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
            words.insert(rng.randint(0, len(words)), made_up if rng.random() < 0.5 else rng.choice(FILLERS.split()))
        text = " ".join(words)
    return text


def pick_concepts(truth: np.ndarray, rng: random.Random, training: bool = True, most: int = 4) -> list[int]:
    """One to ``most`` concepts that hold for a bird (``truth [K]``); held-out pairs only when not ``training``."""
    true = [int(c) for c in np.flatnonzero(truth)]
    while True:
        chosen = rng.sample(true, rng.choice((1, 1, 2, 2, 3, most)) if training else rng.choice((3, most)))
        unseen = any(held_out_pair(a, b) for i, a in enumerate(chosen) for b in chosen[:i])
        if unseen != training:
            return chosen


def caption_words() -> set[str]:
    """Every word the captions can contain, split as the tokenizer splits them."""
    texts = [*CONCEPTS, *TEMPLATES, *HELD_OUT_TEMPLATES, "a an and its with is are the"]
    texts += [t for values in (COLOURS, NOUNS) for words in values.values() for t in words]
    for table in (ADJECTIVES, WHOLE):
        texts += [text for values in table.values() for synonyms in values.values() for text in synonyms]
    return set(" ".join(texts).lower().replace("-", " - ").replace(",", " , ").split()) - {"{}"}


# --------------------------------------------------------------------------------------------------------------------
# model files


def write_tokenizer(out: Path, context_length: int) -> int:
    """Write a WordPiece tokenizer that spells unknown words in letters; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = string.ascii_lowercase + string.digits
    pieces = list(letters + string.punctuation) + [f"##{c}" for c in letters]
    pieces += [f"##{c}" for c in ("s", "es", "ed", "ing", "ly", "ish", "er", "est", "y", "less", "like", "ness")]
    words = sorted(caption_words() | set(FILLERS.split()))
    tokens = list(dict.fromkeys(["[PAD]", "[UNK]", "[BOS]", *pieces, *words]))
    tokens.append("[EOS]")  # CLIP pools at the highest token id
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[BOS]", "[EOS]"])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(vocabulary)


def write_config(out: Path, vocabulary: int, context_length: int, size: int) -> None:
    """Write ``open_clip_config.json``: a ResNet of four blocks with attention pooling and a small text tower."""
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": size, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "tiny_clip",
                "width": 128,
                "heads": 4,
                "layers": 3,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_weights(model: torch.nn.Module, out: Path) -> None:
    """Write the weights in float16 (statistics of batch norm and the logit scale in float32)."""
    from safetensors.torch import save_file

    state = {}
    for name, tensor in model.state_dict().items():
        half = tensor.is_floating_point() and tensor.ndim > 0 and "running" not in name
        state[name] = (tensor.half() if half else tensor).contiguous().clone()
    state.pop("attn_mask", None)
    save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})


# --------------------------------------------------------------------------------------------------------------------
# training


def encode_text(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """``model.encode_text`` without the padding that no text of the batch needs: ``[B, L]`` to unit rows ``[B, D]``."""
    longest = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :longest]
    x = model.token_embedding(tokens) + model.positional_embedding[:longest]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:longest, :longest]))
    x = x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection
    return F.normalize(x.float(), dim=-1)


def many_positives(logits: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """CLIP's softmax loss along the rows of ``logits [A, B]`` when several columns fit (``match [A, B]`` 0/1)."""
    count = match.sum(1)
    loss = -(F.log_softmax(logits, 1) * match).sum(1) / count.clamp(min=1)
    return loss[count > 0].mean()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 ``[B, 3, H, W]`` to normalised floats with random light, tint, contrast, grain, shift and a little blur."""
    b = len(images)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    x = images.float() / 127.5 - 1
    x = x * (1 + 0.12 * uniform(b, 1, 1, 1)) + 0.10 * uniform(b, 1, 1, 1) + 0.06 * uniform(b, 3, 1, 1)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=generator))
    x = torch.roll(x, (dy, dx), (2, 3))
    if float(uniform(1)) > 0.5:  # one batch in four
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) * 0.6 + x * 0.4
    return x


def train(out: Path, minutes: float, seed: int, n_birds: int, batch: int, size: int) -> dict:
    """Train for ``minutes``, write the model to ``out`` and return facts about the run."""
    import open_clip

    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    context_length = 32
    vocabulary = write_tokenizer(out, context_length)
    write_config(out, vocabulary, context_length, size)
    config = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config)
    model.visual = model.visual.to(memory_format=torch.channels_last)
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}", trust_remote_code=False)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {vocabulary} tokens")

    start = time.time()
    shard = 500
    with ThreadPoolExecutor(2) as pool:
        seeds = range(seed * 100_003 + 1, seed * 100_003 + 1 + n_birds // shard)
        shards = list(pool.map(lambda s: random_birds(shard, seed=s, size=size), seeds))
    images = torch.from_numpy(np.concatenate([s[0] for s in shards])).permute(0, 3, 1, 2)  # [N, 3, H, W] uint8
    truth = concepts_of(np.concatenate([s[1] for s in shards]))
    del shards
    print(f"{len(images)} birds drawn in {time.time() - start:.0f} s", flush=True)

    prototypes = torch.nn.Parameter(torch.randn(len(CONCEPTS), config["embed_dim"], generator=generator))
    decay = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2] + [prototypes]
    parameters = [{"params": decay, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    group_sizes = [len(values) for values in ATTRIBUTES.values()]
    one_hot = torch.eye(len(CONCEPTS))

    def within_groups(logits: torch.Tensor, held: torch.Tensor) -> torch.Tensor:  # [B, K] both
        losses = [many_positives(a, b) for a, b in zip(logits.split(group_sizes, 1), held.split(group_sizes, 1))]
        return torch.stack(losses).mean()

    start, step, seen, running = time.time(), 0, 0, 0.0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        warming_up = done < WARM_UP
        rows = torch.randint(len(images), (batch // 2 if warming_up else batch,), generator=generator)
        held = torch.from_numpy(truth[rows.numpy()]).float()  # [B, K] what is true of each bird
        short = tokenize([caption([c], rng) for c in range(len(CONCEPTS))])
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            x = model.visual(augment(images[rows], generator).contiguous(memory_format=torch.channels_last))
            phrases = encode_text(model, short)
        x = F.normalize(x.float(), dim=-1)
        scale = model.logit_scale.exp()
        if warming_up:
            anchors = F.normalize(prototypes, dim=-1)
            within = within_groups(scale * x @ anchors.T, held)
            loss = within + many_positives(scale * phrases @ anchors.T, one_hot)
        else:
            chosen = [pick_concepts(truth[i], rng) for i in rows[: batch // 2].tolist()]
            stated = torch.stack([one_hot[c].sum(0) for c in chosen])
            match = (held @ stated.T >= stated.sum(1)).float()  # [B, C] the caption fits the bird
            with torch.autocast("cpu", torch.bfloat16):
                t = encode_text(model, tokenize([caption(c, rng) for c in chosen]))
            logits, by_phrase = scale * x @ t.T, scale * x @ phrases.T
            within = within_groups(by_phrase, held)
            loss = 0.5 * many_positives(logits, match) + 0.5 * many_positives(logits.T, match.T)
            loss = loss + 0.5 * many_positives(by_phrase.T, held.T) + 4.0 * within
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), prototypes], 2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step, seen = step + 1, seen + len(rows)
        running += (within.item() - running) * max(0.02, 1 / step)
        if step % 50 == 0:
            print(
                f"step {step}  {'warm-up  ' if warming_up else ''}loss {loss.item():.3f}  within groups {running:.3f}  "
                f"scale {scale.item():.1f}  {seen / (time.time() - start):.0f} birds/s  "
                f"{minutes * (1 - done):.1f} min left",
                flush=True,
            )
    save_weights(model, out)
    return {"birds": len(images), "seen": seen, "steps": step, "batch": batch, "minutes": minutes, "seed": seed}


# --------------------------------------------------------------------------------------------------------------------
# evaluation


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve of ``scores [N]`` for ``truth [N]`` 0/1 (no ties expected)."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positive = int(truth.sum())
    return float((ranks[truth == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


@torch.no_grad()
def evaluate(out: Path, seed: int, n: int = 2048, size: int = 64) -> dict:
    """Measure the model as written in ``out``, loaded as any open_clip model, on ``n`` fresh random birds."""
    import open_clip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{out.resolve()}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out.resolve()}", trust_remote_code=False)
    model.eval()
    pictures, attributes = random_birds(n, seed=seed + 987_654_321, size=size)
    truth = concepts_of(attributes)
    x = torch.stack([preprocess(Image.fromarray(p)) for p in pictures])
    x = torch.cat([model.encode_image(b, normalize=True) for b in x.split(256)])

    scores = (x @ model.encode_text(tokenize(list(CONCEPTS)), normalize=True).T).numpy()
    areas = {c: auroc(scores[:, k], truth[:, k]) for k, c in enumerate(CONCEPTS)}
    accuracy, chance, first = {}, {}, 0
    for g, (group, values) in enumerate(ATTRIBUTES.items()):
        within = scores[:, first : first + len(values)]
        accuracy[group] = float((within.argmax(1) == attributes[:, g]).mean())
        chance[group] = 1 / len(values)
        first += len(values)

    rng, recalls = random.Random(seed + 1), {"recall@1": [], "recall@5": [], "chance@1": [], "chance@5": []}
    for rows in np.arange(n).reshape(-1, 256):
        chosen = [pick_concepts(truth[i], rng, training=False) for i in rows]
        captions = tokenize([caption(c, rng, training=False) for c in chosen])
        order = (model.encode_text(captions, normalize=True) @ x[rows].T).argsort(1, descending=True).numpy()
        for c, ranked in zip(chosen, order):
            fits = truth[rows][:, c].all(1)
            share = fits.mean()
            for k in (1, 5):
                recalls[f"recall@{k}"].append(fits[ranked[:k]].any())
                recalls[f"chance@{k}"].append(1 - (1 - share) ** k)
    return {
        "mean_auroc": float(np.mean(list(areas.values()))),
        "worst_auroc": min(areas.values()),
        "auroc": areas,
        "mean_group_accuracy": float(np.mean(list(accuracy.values()))),
        "mean_group_chance": float(np.mean(list(chance.values()))),
        "group_accuracy": accuracy,
        "group_chance": chance,
        "held_out_captions": {name: float(np.mean(values)) for name, values in recalls.items()},
        "logit_scale": float(model.logit_scale.exp()),
        "fresh_birds": n,
        "bytes": sum(f.stat().st_size for f in out.iterdir() if f.suffix in (".json", ".safetensors")),
    }


def write_card(out: Path, run: dict, measured: dict) -> None:
    """Write ``card.json`` (everything) and ``README.md`` (for people)."""
    (out / "card.json").write_text(json.dumps({"training": run, "measured": measured}, indent=2) + "\n")
    m, h, n_concepts, n_groups = measured, measured["held_out_captions"], len(CONCEPTS), len(ATTRIBUTES)
    weakest = sorted(m["auroc"].items(), key=lambda item: item[1])[:5]
    groups = "\n".join(f"| {g} | {a:.3f} | {m['group_chance'][g]:.3f} |" for g, a in m["group_accuracy"].items())
    by_group, by_chance = m["mean_group_accuracy"], m["mean_group_chance"]
    (out / "README.md").write_text(f"""# The tiny CLIP

A CLIP for the paper birds (`cbm/data/birds.py`), small enough to travel with the code ({m["bytes"] / 1e6:.1f} MB):
a ResNet with one block per stage for 64-pixel pictures, a three-layer text transformer, 128 shared dimensions. It is
stored in open_clip's format and loads as any other model does:

    model, preprocess = open_clip.create_model_from_pretrained("local-dir:cbm/encoders/tiny_clip")
    tokenizer = open_clip.get_tokenizer("local-dir:cbm/encoders/tiny_clip")

It knows paper birds and the words that describe them, and nothing else: it is there so that the default journey runs
offline through the same code as a large CLIP. It says nothing about photographs.

**Data.** {run["birds"]} random birds, every attribute drawn uniformly and independently, and captions made up on the
fly that name one to four attributes in varying words. No species: their names never occur, and the attributes of a
species are together no more often than any others.

**Training.** By `python scripts/train_tiny_clip.py --minutes {run["minutes"]:g} --seed {run["seed"]}`:
{run["steps"]} steps and {run["seen"]} pictures on one CPU core. After a warm-up in which both towers learn one shared
vector per concept: CLIP's softmax in both directions, where a caption is positive for every bird it fits, and a softmax
over the values of each attribute group. The budget is time, so another machine takes another number of steps and ends
with other weights.

**Measured** by the script on the files as written, on {m["fresh_birds"]} fresh random birds. Chance is a random choice.

| | measured | chance |
|---|---|---|
| AUROC of a concept from its short phrase, mean of {n_concepts} | {m["mean_auroc"]:.4f} | 0.500 |
| the same, worst concept | {m["worst_auroc"]:.4f} | 0.500 |
| zero-shot accuracy within a group, mean of {n_groups} | {by_group:.3f} | {by_chance:.3f} |
| held-out caption to picture, a fitting one of 256 first | {h["recall@1"]:.3f} | {h["chance@1"]:.3f} |
| the same, among the first five | {h["recall@5"]:.3f} | {h["chance@5"]:.3f} |

Held-out captions state three or four attributes, at least two of which were never together in a training caption, in
sentences never used in training. Weakest concepts:
{", ".join(f"{c} ({a:.4f})" for c, a in weakest)}.

| group | zero-shot accuracy | chance |
|---|---|---|
{groups}

The stored logit scale is {m["logit_scale"]:.1f}. `card.json` has all numbers.
""")


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="training time, drawing the birds not counted")
    parser.add_argument("--out", type=Path, default=Path("cbm/encoders/tiny_clip"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--birds", type=int, default=40_000, help="random birds to train on (12 KB of memory each)")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the pictures are small: a second thread gains little and loses much on a busy machine
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = train(arguments.out, arguments.minutes, arguments.seed, arguments.birds, arguments.batch, size=64)
    measured = evaluate(arguments.out, arguments.seed)
    write_card(arguments.out, run, measured)
    print(json.dumps({k: v for k, v in measured.items() if k not in ("auroc", "group_chance")}, indent=2))
    for concept, area in sorted(measured["auroc"].items(), key=lambda item: item[1])[:12]:
        print(f"  {area:.3f}  {concept}")


if __name__ == "__main__":
    main()
