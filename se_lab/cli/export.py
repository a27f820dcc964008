"""se-lab export and eval."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict

from se_lab.cli.parser import add_flags
from se_lab.spec.parser import Parser


def export(argv: list[str]) -> int:
    """Export a trained net."""
    parser = Parser(
        prog="se-lab export",
        description="Export a trained net: weights for timm, TorchScript, ONNX, or a detector's backbone. "
        "The outputs of each format are checked against the net.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="A trial's folder, or a checkpoint in it.")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="Output folder.")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=["safetensors", "torchscript", "onnx"],
        choices=("safetensors", "torchscript", "onnx", "detector"),
        help="Formats; by default all except detector, which has weights with the keys of torchvision's detectors.",
    )
    parser.add_argument(
        "--image_size", type=int, metavar="PIXELS", help="Image size for TorchScript and ONNX; by default the trial's."
    )
    parser.add_argument(
        "--plain", action="store_true", help="Also write the backbone without its SE units, in plain_backbone/."
    )
    add_flags(parser, "data_root", "trust_plugins", "overwrite")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.trained.export import ExportOptions, export

    settings = ExportOptions(
        image_size=options.image_size,
        data_root=options.data_root or ExecSpec().data_root,
        plain=options.plain,
        trust_plugins=options.trust_plugins,
        overwrite=options.overwrite,
    )
    say = functools.partial(print, file=sys.stderr)
    for path in export(options.checkpoint, options.output, options.formats, options=settings, say=say):
        print(path)
    return 0


def eval(argv: list[str]) -> int:
    """Measure the test error of a trained net."""
    parser = Parser(
        prog="se-lab eval",
        description="Measure loss and error of a trained net on test images, with 95 % intervals over images (Wilson). "
        "On the trial's own images, the results are those in the trial's record.",
    )
    parser.add_argument("net", metavar="CHECKPOINT|timm:NAME", help="A trial's folder or checkpoint, or a timm net.")
    parser.add_argument(
        "--data", help="A data set's name, or folder:PATH with a folder per class; by default the trial's data set."
    )
    add_flags(parser, "data_root")
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="Images per batch; by default the trial's batch size, else 64."
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Device of the net.")
    parser.add_argument("--data_workers", type=int, default=2, metavar="N", help="Number of processes that read files.")
    parser.add_argument("--predictions", metavar="FILE.npz", help="Write the predictions of all images to a file.")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="Output format.")
    add_flags(parser, "trust_plugins", "overwrite")
    options = parser.parse_args(argv)
    from se_lab.spec import ExecSpec
    from se_lab.trained.evaluate import EvalOptions, evaluate

    settings = EvalOptions(
        data_root=options.data_root or ExecSpec().data_root,
        batch_size=options.batch_size,
        device=options.device,
        workers=options.data_workers,
        trust_plugins=options.trust_plugins,
    )
    result = evaluate(
        options.net, options.data, predictions=options.predictions, overwrite=options.overwrite, options=settings
    )
    if options.format == "json":
        print(json.dumps(asdict(result), indent=2))
        return 0
    for remark in result.remarks:
        print(remark, file=sys.stderr)
    print(f"{result.net} on {result.data}, {result.images} test images")
    for key, value in result.metrics.items():
        interval = result.intervals.get(key)
        print(f"{key:<18} {value:.4g}" + (f" %  ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""))
    return 0
