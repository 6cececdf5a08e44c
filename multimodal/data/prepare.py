"""Turn any source into ArrayRecord files, in several processes, restartably:

    python -m multimodal.data.prepare --config configs/NAME.py --out DIR [--split train,val]
        [--files 16] [--processes 4] [--config.KEY=VALUE ...]

Train on them with --config.data.source=array_record --config.data.kwargs="{'folder': 'DIR'}". A
file that is there is not made again, so a killed run goes on where it was. Records that cannot be
read are left out and counted; more than config.data.max_bad_share is an error.
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys

from multimodal.data.array_record_source import pack
from multimodal.data.sources import build_source
from multimodal.errors import BadRecord, UserError

GROUP = "group_size:1"  # records are read alone, in any order


def convert(config, split, out, files=16, processes=1):
    """Write a split of a config's source as `files` files and SPLIT.json; returns what that says.

    Raises UserError for a folder that holds another source's files, and for too many bad records.
    """
    out, data = pathlib.Path(out), config.data
    kwargs = data.kwargs.to_dict()
    source = build_source(data.source, split, kwargs)
    files = min(files, len(source))
    key = _key(data.source, kwargs, split, files, len(source))
    out.mkdir(parents=True, exist_ok=True)
    _claim(out / f"{split}.plan", key)
    jobs = [(data.source, kwargs, split, str(out), i, files) for i in range(files)]
    if processes > 1:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, spawn) as pool:
            parts = list(pool.map(_write_file, jobs))
    else:
        parts = [_write_file(job, source) for job in jobs]
    bad = {k: v for p in parts for k, v in p.pop("bad").items()}
    if len(bad) > data.max_bad_share * len(source):
        number, why = next(iter(bad.items()))
        raise UserError(
            f"{source.name}: {len(bad)} of {len(source)} records cannot be read, more than "
            f"config.data.max_bad_share; the first: record {number}: {why}"
        )
    about = {
        "source": source.name,
        "examples": sum(p["examples"] for p in parts),
        "left_out": bad,
        "optional": list(getattr(source, "optional", ())),
        "targets": getattr(source, "targets", None) or _label_names(source),
        "credit": getattr(source, "credit", ""),
        "files": parts,
    }
    _replace(out / f"{split}.json", json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    return about


def _label_names(source):
    names = getattr(source, "label_names", None)
    return {"label": names} if names else {}


def _key(name, kwargs, split, files, examples):
    plain = json.dumps([name, kwargs, split, files, examples], sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def _claim(path, key):
    """Note what the files of a folder are of. Raises UserError where they are of something else."""
    before = path.read_text(encoding="utf-8") if path.exists() else key
    if before != key:
        raise UserError(
            f"{path.parent} holds files of another source or of other --files: take another --out"
        )
    _replace(path, key)


def _replace(path, text):
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _write_file(job, source=None):
    """Write one file and its note, unless both are there: {name, examples, bytes, bad}."""
    from array_record.python.array_record_module import ArrayRecordWriter

    name, kwargs, split, out, number, files = job
    path = pathlib.Path(out, f"{split}-{number:05d}-of-{files:05d}.array_record")
    note = path.with_suffix(".note")
    if note.exists() and path.exists():
        return json.loads(note.read_text(encoding="utf-8"))
    source = build_source(name, split, kwargs) if source is None else source
    part, bad, written = path.with_name(f"{path.name}.{os.getpid()}.part"), {}, 0
    writer = ArrayRecordWriter(str(part), GROUP)
    for i in range(number * len(source) // files, (number + 1) * len(source) // files):
        try:
            record = pack(source[i])
        except BadRecord as e:
            bad[i] = str(e)
            continue
        writer.write(record)
        written += 1
    writer.close()
    os.replace(part, path)
    found = {"name": path.name, "examples": written, "bytes": path.stat().st_size, "bad": bad}
    _replace(note, json.dumps(found))
    return found


def main(argv=None):
    from multimodal.cli import mark_flags_as_parsed
    from multimodal.config import load_config

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", default="", help="comma-separated; default: the config's")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args, rest = parser.parse_known_args(argv)
    mark_flags_as_parsed()
    try:
        strange = [r for r in rest if not r.startswith("--config.")]
        if strange or args.files < 1 or args.processes < 1:
            raise UserError(f"unknown argument {strange[0]}" if strange else "give 1 or more files")
        config = load_config(args.config, [r.removeprefix("--config.") for r in rest])
        splits = [s for s in args.split.split(",") if s]
        for split in splits or (config.data.train_split, *config.data.eval_splits):
            about = convert(config, split, args.out, args.files, args.processes)
            print(
                f"{split}: {about['examples']} examples in {len(about['files'])} files, "
                f"{len(about['left_out'])} left out"
            )
    except (UserError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
