"""prepare.py as an Apache Beam pipeline, for data sets that take many machines:

    python -m multimodal.data.prepare_beam --config configs/NAME.py --out gs://BUCKET/DIR
        [--split train,val] [--files 1000] [--config.KEY=VALUE ...] -- --runner=DataflowRunner ...

What stands after `--` is Beam's. The files are those of prepare.py, byte by byte, and one of the
two goes on where the other was killed. All workers must have this package and see the source and
--out. Beam's counters `examples` and `left_out` tell how far it is. Beam comes by `pip install
apache-beam` in an environment of its own; it is no extra of this package, because its bounds would
hold back the tested versions of NumPy, Pillow, Protobuf and PyArrow.
"""

import argparse
import sys

from multimodal.data import prepare
from multimodal.errors import Unhealthy, UserError


def in_pipeline(arguments=()):
    """`write` for prepare.convert: a pipeline with these arguments of Beam, one element a file.

    Raises UserError where Beam is not installed, a file cannot be made, or what the workers wrote
    is not found.
    """
    try:
        import apache_beam as beam
    except ImportError as e:
        raise UserError(f"this needs Apache Beam ({e}): pip install apache-beam") from None

    def write(jobs, source):
        options = _options(beam, arguments)
        todo = [job for job in jobs if prepare.read_note(job) is None]
        try:
            with beam.Pipeline(options=options) as pipeline:
                files = pipeline | beam.Create(todo) | beam.Reshuffle()
                files | beam.Map(_write_file)
        except Exception as e:  # runners wrap what a worker raised in errors of their own
            lines = [line for line in str(e).splitlines() if line.strip()]
            told = next((x for x in lines if "UserError: " in x), (lines or [repr(e)])[-1])
            down = next((x for x in lines if "Unhealthy: " in x), "")
            if down:
                raise Unhealthy(f"Beam: {down.rpartition('Unhealthy: ')[2]:.300}") from e
            raise UserError(f"Beam: {told.rpartition('UserError: ')[2]:.300}") from e
        notes = [prepare.read_note(job) for job in jobs]
        if None in notes:
            raise UserError(
                f"file {notes.index(None)} of {len(jobs)} is not in {jobs[0][3]}: --out must be "
                "a place that all workers share"
            )
        return notes

    return write


def _options(beam, arguments):
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        return PipelineOptions(list(arguments))
    except SystemExit:  # argparse has said why
        raise UserError(f"Beam does not take {' '.join(arguments)}") from None


def _write_file(job):
    """One file, on a worker."""
    from apache_beam.metrics import Metrics

    from multimodal.cli import mark_flags_as_parsed

    mark_flags_as_parsed()
    note = prepare.write_file(job)
    Metrics.counter("prepare", "examples").inc(note["examples"])
    Metrics.counter("prepare", "left_out").inc(len(note["bad"]))


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return prepare.run(parser, argv[:cut], lambda args: in_pipeline(argv[cut + 1 :]))


if __name__ == "__main__":
    sys.exit(main())
