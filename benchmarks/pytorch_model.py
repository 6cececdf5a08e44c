"""The PyTorch side of benchmarks/pytorch.py: the same models and objectives, written for speed.

Queries, keys and values are one product, attention is scaled_dot_product_attention, AdamW is the
fused one, the teacher moves by one multi-tensor call. Modules are named as ours, so that weights
come by their paths.
"""

import collections
import copy

import torch
import torch.nn.functional as F
from torch import nn

PACKED = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}
LEAVES = {nn.LayerNorm: "scale", nn.Embedding: "embedding"}  # what ours call `weight`; else kernel
PAD, CLS, MASK = 0, 2, 4  # ids of the tokenizer
RATE, MOST = 0.15, 5  # of tokens masked, and the largest number an example


def narrow(x):
    """x in autocast's type where that is on: the residual stream is then half as many bytes."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Attention(nn.Module):
    """Multi-head attention over the input itself, or over a context."""

    def __init__(self, width, heads, cross=False):
        super().__init__()
        self.heads, self.cross = heads, cross
        if cross:
            self.query, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, context=None, mask=None, causal=False):
        if self.cross:
            parts = (self.query(x), *self.kv(context).chunk(2, -1))
        else:
            parts = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block, with cross-attention where asked for."""

    def __init__(self, c, cross=False):
        super().__init__()
        width, heads = c["width"], c["heads"]
        self.norm_attention = nn.LayerNorm(width, c["eps"])
        self.attention = Attention(width, heads)
        if cross:
            self.norm_cross_attention = nn.LayerNorm(width, c["eps"])
            self.cross_attention = Attention(width, heads, cross=True)
        self.norm_mlp = nn.LayerNorm(width, c["eps"])
        up, down = nn.Linear(width, c["mlp_dim"]), nn.Linear(c["mlp_dim"], width)
        self.mlp = nn.Sequential(collections.OrderedDict(up=up, act=nn.GELU(), down=down))

    def forward(self, x, mask=None, causal=False, context=None):
        x = x + self.attention(self.norm_attention(x), mask=mask, causal=causal)
        if context is not None:
            x = x + self.cross_attention(self.norm_cross_attention(x), context)
        return x + self.mlp(self.norm_mlp(x))


class Stack(nn.ModuleDict):
    """Blocks after each other."""

    def __init__(self, c, cross=False):
        super().__init__({f"block_{i}": Block(c, cross) for i in range(c["depth"])})

    def forward(self, x, *args, **kwargs):
        for block in self.values():
            x = block(x, *args, **kwargs)
        return x


class Image(nn.Module):
    """A Vision Transformer: bytes [B, H, W, 3] -> (tokens, pooled)."""

    def __init__(self, c):
        super().__init__()
        width, patch = c["width"], c["patch"]
        self.pooled_norm = c["final_norm"] == "pooled"
        self.patch_embed = nn.Conv2d(3, width, patch, patch, bias=c["patch_bias"])
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (c["size"] // patch) ** 2 + 1, width))
        self.pre_norm = nn.LayerNorm(width, c["eps"]) if c["pre_norm"] else nn.Identity()
        self.stack = Stack(c)
        self.final_norm = nn.LayerNorm(width, c["eps"])
        self.register_buffer("mean", 255 * torch.tensor(c["mean"]).reshape(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(c["std"]).reshape(3, 1, 1))

    def forward(self, image):
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.stack(narrow(self.pre_norm(narrow(x))))
        if self.pooled_norm:
            return x, self.final_norm(x[:, 0])
        x = self.final_norm(x)
        return x, x[:, 0]


class Text(nn.Module):
    """A text Transformer: ids [B, L] -> (tokens, pooled, attention mask or None)."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.token_embed = nn.Embedding(c["vocab_size"], c["width"])
        self.pos_embed = nn.Parameter(torch.zeros(c["max_length"], c["width"]))
        self.stack = Stack(c)
        self.norm_final = nn.LayerNorm(c["width"], c["eps"])

    def forward(self, ids):
        mask = (ids != PAD)[:, None, None] if self.c["mask_padding"] else None
        x = self.stack(narrow(self.token_embed(ids) + self.pos_embed), mask, self.c["causal"])
        x = self.norm_final(x)
        if self.c["pool"] == "class":
            return x, x[:, 0], mask
        end = (ids == self.c["eot_id"]).int().argmax(1)
        return x, x[torch.arange(len(x), device=x.device), end], mask


class Fuser(nn.Module):
    """Blocks of a query over a context, and a norm."""

    def __init__(self, c):
        super().__init__()
        self.stack = Stack(c, cross=True)
        self.norm_final = nn.LayerNorm(c["width"], c["eps"])

    def forward(self, x, mask, context):
        return self.norm_final(self.stack(x, mask, context=context))


class MlmHead(nn.Module):
    """BERT's transform and the tied output layer."""

    def __init__(self, c):
        super().__init__()
        self.transform = nn.Linear(c["width"], c["width"])
        self.norm = nn.LayerNorm(c["width"], c["eps"])
        self.bias = nn.Parameter(torch.zeros(c["vocab_size"]))

    def forward(self, x, embedding):
        return F.linear(self.norm(F.gelu(self.transform(x))), embedding, self.bias)


class Model(nn.Module):
    """Two towers and, for ALBEF, a fusion with its two heads."""

    def __init__(self, config):
        super().__init__()
        m, towers = config["model"], config["modalities"]
        self.encoder_image, self.encoder_text = Image(towers["image"]), Text(towers["text"])
        for name, c in towers.items():
            project = nn.Linear(c["width"], m["embed_dim"], c["proj_bias"])
            self.add_module(f"project_{name}", project)
        self.temperature = nn.Parameter(torch.zeros(()))
        if m["fusion"]["kind"] == "cross_attention":
            self.fuser = Fuser(m["fusion"])
            self.match_head = nn.Linear(m["fusion"]["width"], 2)
            self.mlm_head = MlmHead(towers["text"])

    def encode(self, batch):
        """Tokens of images and texts, the texts' mask, and unit vectors of both."""
        image, pooled_a = self.encoder_image(batch["image"])
        text, pooled_b, mask = self.encoder_text(batch["text"])
        a, b = self.project_image(pooled_a), self.project_text(pooled_b)
        a, b = (F.normalize(x.float(), dim=-1) for x in (a, b))
        return image, text, mask, a, b

    def words(self, ids, context, at):
        """[B, P, V] logits at the positions `at` of masked texts over their images."""
        x, _, mask = self.encoder_text(ids)
        x = self.fuser(x, mask, context)
        x = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
        return self.mlm_head(x, self.encoder_text.token_embed.weight)


def similarity(a, b):
    """a b^T in float32, whatever autocast says, as ours."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def clip_loss(model, teacher, batch, alpha):
    """{name: loss} of two towers."""
    *_, a, b = model.encode(batch)
    logits = model.temperature.exp() * similarity(a, b)
    labels = torch.arange(len(a), device=a.device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return {"contrastive": loss}


def albef_loss(model, teacher, batch, alpha):
    """{name: loss}: contrast, matching of 3 B pairs, masked words, as configs/emoji.py has them.

    alpha: the teacher's share of the targets. Students' columns, positives by id, no queue.
    """
    same = batch["id"][:, None] == batch["id"]
    image, text, mask, a, b = model.encode(batch)
    scale = model.temperature.exp()
    with torch.no_grad():
        taught_image, *_, taught_a, taught_b = teacher.encode(batch)
        guess, own = scale * similarity(taught_a, taught_b), same / same.sum(1, keepdim=True)
        targets = [alpha * g.softmax(1) + (1 - alpha) * own for g in (guess, guess.T)]
    logits = scale * similarity(a, b)
    contrast = (F.cross_entropy(logits, targets[0]) + F.cross_entropy(logits.T, targets[1])) / 2

    chances = logits.detach().masked_fill(same, -torch.inf)
    neg_a, neg_b = (torch.multinomial(c.softmax(1), 1)[:, 0] for c in (chances.T, chances))
    query, seen = torch.cat([text, text, text[neg_b]]), torch.cat([mask, mask, mask[neg_b]])
    fused = model.fuser(query, seen, torch.cat([image, image[neg_a], image]))
    labels = torch.arange(3 * len(a), device=a.device) < len(a)
    itm = F.cross_entropy(model.match_head(fused[:, 0]), labels.long())

    ids, at, words, there = masked(batch["text"], model.encoder_text.c["vocab_size"])
    with torch.no_grad():
        soft = teacher.words(ids, taught_image, at).softmax(-1)
    logp = model.words(ids, image, at).log_softmax(-1)
    hard = -logp.gather(-1, words[..., None])[..., 0]
    losses = (1 - alpha) * hard - alpha * (soft * logp).sum(-1)
    mlm = (losses * there).sum() / there.sum().clamp(min=1)
    return {"contrastive": contrast, "itm": itm, "mlm": mlm}


def masked(ids, vocab_size):
    """BERT's masking: (masked ids [B, L], positions [B, P], words there, whether one is masked)."""
    luck = torch.rand(ids.shape, device=ids.device).masked_fill_((ids == PAD) | (ids == CLS), 1.0)
    luck, at = luck.topk(MOST, 1, largest=False)
    words, fate = ids.gather(1, at), torch.rand(at.shape, device=at.device)
    other = torch.randint(MASK + 1, vocab_size, at.shape, device=at.device)
    new = torch.where(fate < 0.8, MASK, torch.where(fate < 0.9, other, words))
    there = luck < RATE
    return ids.scatter(1, at, torch.where(there, new, words)), at, words, there


@torch.no_grad()
def take_weights(model, ours):
    """Put our parameters {path: array} into the model; every one of both, in number and size."""
    used = set()
    for name, module in model.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            *parents, own = name.split(".")
            if leaf == "weight":
                leaf = LEAVES.get(type(module), "kernel")
            names = [[*parents, n, leaf] for n in PACKED.get(own, (own,))]
            paths = ["/".join(filter(None, n)) for n in names]
            used.update(paths)
            found = [torch.from_numpy(ours[path]) for path in paths]
            if isinstance(module, nn.Conv2d) and leaf == "kernel":
                side = p.shape[-1]
                found = [found[0].reshape(side, side, 3, -1).permute(3, 2, 0, 1)]
            elif leaf == "kernel":
                rows = p.shape[1]
                found = [w.reshape(rows, -1).T for w in found]
            elif leaf == "bias":
                found = [w.flatten() for w in found]
            p.copy_(torch.cat(found)) if found[0].ndim else p.copy_(found[0])
    assert used == set(ours), used ^ set(ours)
    sizes = sum(p.numel() for p in model.parameters()), sum(w.size for w in ours.values())
    assert sizes[0] == sizes[1], f"parameters: {sizes}"


class Trainer:
    """A model with its optimizer, teacher and one batch; step() is one training step.

    compiled: torch.compile's mode; None: without. Where config.model.dtype is bfloat16, autocast
    multiplies in it, the residual stream is in it, and norms and losses are in float32.
    """

    def __init__(self, config, ours, batch, device="cpu", compiled=None):
        self.config, self.model, o = config, Model(config), config["optim"]
        take_weights(self.model, ours)
        self.device = device
        self.model.to(device)
        half = config["model"]["dtype"] == "bfloat16"
        self.cast = torch.autocast(device, torch.bfloat16, enabled=half)
        self.batch = {k: torch.from_numpy(v).to(device) for k, v in batch.items()}
        for k in ("text", "id"):
            self.batch[k] = self.batch[k].long()
        self.decay, self.count = config["ema"]["decay"], 0
        self.teacher = copy.deepcopy(self.model).requires_grad_(False) if self.decay else None
        named = list(self.model.named_parameters())
        self.params = [p for _, p in named]
        matrices = [p for n, p in named if n.endswith("weight") and p.ndim > 1]
        others = [p for n, p in named if not (n.endswith("weight") and p.ndim > 1)]
        groups = [dict(params=matrices), dict(params=others, weight_decay=0.0)]
        self.tx = torch.optim.AdamW(
            groups, lr=o["lr"]["peak"] / o["lr"]["warmup"], betas=(o["b1"], o["b2"]), eps=o["eps"],
            weight_decay=o["weight_decay"], fused=True,
        )  # fmt: skip
        self.loss = albef_loss if "mlm" in config["objectives"] else clip_loss
        if compiled:
            self.loss = torch.compile(self.loss, mode=compiled)

    def step(self):
        """{name: loss} of a step, tensors that may not be there yet."""
        alpha = 0.4 * min(1.0, self.count / (self.config["steps"] / 2))
        self.count += 1
        if self.teacher is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.teacher.parameters()), self.params, 1 - self.decay)
        with self.cast:
            losses = self.loss(
                self.model, self.teacher, self.batch, torch.full((), alpha, device=self.device)
            )
        sum(losses.values()).backward()
        if self.config["optim"]["clip"]:
            nn.utils.clip_grad_norm_(self.params, self.config["optim"]["clip"])
        self.tx.step()
        self.tx.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.temperature.clamp_(0.0, 4.6052)
        return {k: v.detach() for k, v in losses.items()}
