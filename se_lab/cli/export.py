"""se-lab export and eval."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict

from se_lab.cli.parser import add_data_root, add_overwrite, add_trust
from se_lab.spec.parser import Parser


def export(argv: list[str]) -> int:
    """Write a trained net for other software."""
    parser = Parser(
        prog="se-lab export",
        description="A trained net for elsewhere: weights that timm loads, TorchScript, ONNX, a detector's backbone. "
        "Every file is checked against the net before it is in place.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="A trial's folder, or a checkpoint in it.")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="The folder to write into.")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=["safetensors", "torchscript", "onnx"],
        choices=("safetensors", "torchscript", "onnx", "detector"),
        help="What to write; all but detector by default. detector: the weights as torchvision's detectors name them.",
    )
    parser.add_argument(
        "--image_size", type=int, metavar="PIXELS", help="Side of the images for TorchScript and ONNX; the trial's."
    )
    parser.add_argument(
        "--plain", action="store_true", help="Write the backbone without its SE units as well, in plain_backbone/."
    )
    add_data_root(parser)
    add_trust(parser)
    add_overwrite(parser)
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
    """Test a trained net."""
    parser = Parser(
        prog="se-lab eval",
        description="Loss and error of a trained net on test images, with 95 % intervals over images (Wilson). "
        "On its trial's own images the numbers are those of the trial's record.",
    )
    parser.add_argument("net", metavar="CHECKPOINT|timm:NAME", help="A trial's folder or checkpoint, or a timm net.")
    parser.add_argument(
        "--data", help="A data set's name, or folder:PATH with a folder per class; by default the trial's data set."
    )
    add_data_root(parser)
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="Images at a time; by default the trial's, else 64."
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Where the net runs.")
    parser.add_argument("--data_workers", type=int, default=2, metavar="N", help="Processes that read files.")
    parser.add_argument("--predictions", metavar="FILE.npz", help="Write key, label, top-5 and correct of every image.")
    parser.add_argument("--format", default="table", choices=("table", "json"), help="How it is written.")
    add_trust(parser)
    add_overwrite(parser)
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
