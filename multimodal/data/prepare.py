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
import sys

from multimodal import paths
from multimodal.data.array_record_source import pack
from multimodal.data.sources import build_source
from multimodal.errors import BadRecord, Unhealthy, UserError

GROUP = "group_size:1"  # records are read alone, in any order


def convert(config, split, out, files=16, write=None):
    """Write a split of a config's source as `files` files and SPLIT.json; returns what that says.

    Args:
      out: folder, or URL of one.
      write: makes the files of jobs: (jobs, source) -> notes of `write_file`. Default: one by one.
    Raises: UserError for a folder that holds another source's files, and for too many bad records.
    """
    out, data = paths.absolute(str(out)), config.data
    kwargs = data.kwargs.to_dict()
    source = build_source(data.source, split, kwargs)
    files = min(files, len(source))
    if not paths.is_remote(out):
        os.makedirs(out, exist_ok=True)
    _claim(out, split, _key(data.source, kwargs, split, files, len(source)))
    jobs = [(data.source, kwargs, split, out, i, files) for i in range(files)]
    parts = write(jobs, source) if write else [write_file(job, source) for job in jobs]
    bad = {int(k): v for p in parts for k, v in p.pop("bad").items()}
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
    text = json.dumps(about, ensure_ascii=False, indent=1) + "\n"
    paths.write(paths.join(out, f"{split}.json"), text.encode())
    return about


def in_processes(count):
    """`write` for convert: in so many processes of this machine."""
    if count < 1:
        raise UserError(f"--processes={count}: give 1 or more")

    def write(jobs, source):
        if count == 1:
            return [write_file(job, source) for job in jobs]
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(count, spawn) as pool:
            return list(pool.map(write_file, jobs))

    return write


def _label_names(source):
    names = getattr(source, "label_names", None)
    return {"label": names} if names else {}


def _key(name, kwargs, split, files, examples):
    plain = json.dumps([name, kwargs, split, files, examples], sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def _claim(out, split, key):
    """Note what the files of a folder are of. Raises UserError where they are of something else."""
    path = paths.join(out, f"{split}.plan")
    if paths.is_file(path) and paths.read(path).decode("utf-8", "replace") != key:
        raise UserError(
            f"{out} holds files of another source or of other --files: take another --out"
        )
    paths.write(path, key.encode())


def read_note(job):
    """What `write_file` noted of a job; None where it has not been done."""
    path, note = _places(job)
    if not (paths.is_file(note) and paths.is_file(path)):
        return None
    try:
        return json.loads(paths.read(note))
    except ValueError:  # damaged: the file is written again
        return None


def _places(job):
    _, _, split, out, number, files = job
    stem = paths.join(out, f"{split}-{number:05d}-of-{files:05d}")
    return f"{stem}.array_record", f"{stem}.note"


def write_file(job, source=None):
    """Write one file and its note, unless both are there: {name, examples, bytes, bad}."""
    from array_record.python.array_record_module import ArrayRecordWriter

    if done := read_note(job):
        return done
    name, kwargs, split, _, number, files = job
    source = build_source(name, split, kwargs) if source is None else source
    path, note = _places(job)
    bad, written = {}, 0
    with paths.writing(path) as part:
        writer = ArrayRecordWriter(part, GROUP)
        for i in range(number * len(source) // files, (number + 1) * len(source) // files):
            try:
                record = pack(source[i])
            except BadRecord as e:
                bad[i] = str(e)
                continue
            writer.write(record)
            written += 1
        writer.close()
        size = os.path.getsize(part)
    found = {"name": os.path.basename(path), "examples": written, "bytes": size, "bad": bad}
    paths.write(note, json.dumps(found).encode())
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return run(parser, argv, lambda args: in_processes(args.processes))


def run(parser, argv, write):
    """The command: converts the splits, by `write(arguments)`; returns the exit code."""
    from multimodal.cli import mark_flags_as_parsed
    from multimodal.config import load_config

    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, help="folder, or URL of one")
    parser.add_argument("--split", default="", help="comma-separated; default: the config's")
    parser.add_argument("--files", type=int, default=16)
    args, rest = parser.parse_known_args(argv)
    mark_flags_as_parsed()
    try:
        strange = [r for r in rest if not r.startswith("--config.")]
        if strange or args.files < 1:
            raise UserError(f"unknown argument {strange[0]}" if strange else "give 1 or more files")
        config = load_config(args.config, [r.removeprefix("--config.") for r in rest])
        splits = [s for s in args.split.split(",") if s]
        for split in splits or (config.data.train_split, *config.data.eval_splits):
            about = convert(config, split, args.out, args.files, write(args))
            print(
                f"{split}: {about['examples']} examples in {len(about['files'])} files, "
                f"{len(about['left_out'])} left out"
            )
    except (UserError, Unhealthy, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 1 if isinstance(e, Unhealthy) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
