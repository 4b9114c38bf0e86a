"""``googlenet explain``: what a network has learned and what its parts do, as figures and pictures."""

import argparse
import os
from pathlib import Path

from .command import answer, verb_parser, whole_numbers

# Of these, those that look at the pictures named on the command line.
ABOUT_PICTURES = ("cam", "gradcam", "scales")
WHAT = (*ABOUT_PICTURES, "filters", "paths", "depth", "gradients", "units")


def explain(argv: list[str]) -> None:
    """Show what a network sees, and what its parts do."""
    parser = verb_parser(
        "explain",
        "What a network has learned and what its parts do, as figures, PNG pictures and explain.html in a folder.\n"
        "  cam        where on the last map each class's logit comes from (class activation maps)\n"
        "  gradcam    the same by gradients at every stage (Grad-CAM, and activation x gradient)\n"
        "  scales     the picture's class probabilities at several sizes\n"
        "  filters    the first layer's filters, and the Gabor function closest to each\n"
        "  paths      what each parallel path of each block contributes, and what is lost without it\n"
        "  depth      what the auxiliary heads, or linear probes on each layer, know: what depth buys\n"
        "  gradients  gradients by depth of fresh networks, with and without auxiliary heads\n"
        "  units      which of a layer's units go together: their correlations, clustered",
        "googlenet explain runs/demo photo.jpg --out insight --what cam,gradcam",
    )
    parser.add_argument(
        "run", help="a run folder, a .safetensors file, or published weights such as torchvision:googlenet"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a picture file, a folder, or -")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument(
        "--what", type=_what, metavar="A,B,...", help="which of the above, or all (default: cam,scales)"
    )
    parser.add_argument("--stage", metavar="NAME", help="the layer for gradcam (default: each stage) and units")
    parser.add_argument(
        "--class", dest="label", metavar="NAME", help="the class for cam and gradcam (default: the best)"
    )
    parser.add_argument("--size", type=int, help="height and width in pixels (default: the run's)")
    parser.add_argument("--sizes", type=whole_numbers, metavar="A,B,...", help="the sizes for scales")
    parser.add_argument(
        "--data", metavar="SOURCE", help="fashion-mnist, folder:PATH or shards:PATH (default: the run's own)"
    )
    parser.add_argument("--root", help="where the data lies, looked at first")
    parser.add_argument("--split", choices=["test", "validation", "train"], help="default: test where there is one")
    parser.add_argument(
        "--limit", type=int, default=2000, metavar="N", help="at most so many pictures of a split (default 2000)"
    )
    parser.add_argument("--report", action="store_true", help="put them at the end of the run's report.html too")
    args = parser.parse_args(argv)
    args.what = args.what or ["cam", "scales"]
    needy = [what for what in args.what if what in ABOUT_PICTURES]
    if needy and not args.images:
        parser.error(f"{' and '.join(needy)} look at a picture: name one, or choose others with --what")
    if args.limit < 1:
        parser.error("--limit must be 1 or more")

    from ..files import write_atomically
    from ..insight.page import Section, render_page, with_sections
    from . import about_networks, about_pictures
    from .asked import ask

    questions = {
        "cam": about_pictures.cam_answer,
        "gradcam": about_pictures.gradcam_answer,
        "scales": about_pictures.scales_answer,
        "filters": about_networks.filters_answer,
        "paths": about_networks.paths_answer,
        "depth": about_networks.depth_answer,
        "gradients": about_networks.gradients_answer,
        "units": about_networks.units_answer,
    }
    folder, report = _folder(args.out), Path(args.run) / "report.html"
    if args.report and not report.is_file():
        raise ValueError(f"{report}: no such file; --report is for the folder of a finished run")
    asked = ask(args)
    sections, document = [], {}
    for what in args.what:
        found = questions[what](asked)
        document[what] = found.figures
        sections.append(Section(found.title, found.pictures, found.lines))
    pictures = [picture for section in sections for picture in section.pictures]
    page = render_page(f"What {Path(args.run).name} sees", f"googlenet explain, {asked.about}", sections)
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write_atomically(folder / picture.file, picture.png)
    write_atomically(folder / "explain.html", page)
    if args.report:
        write_atomically(report, with_sections(report.read_text(), sections))
    files = [str(folder / name) for name in (*(picture.file for picture in pictures), "explain.html")]
    files += [str(report)] if args.report else []
    lines = [line for section in sections for line in (f"{section.title}:", *(f"  {line}" for line in section.lines))]
    answer(args.json, {"files": files, **document}, [*lines, *(f"written: {file}" for file in files)])


def _what(text: str) -> list[str]:
    """ "cam,scales" -> ["cam", "scales"], for an argument's type."""
    chosen = list(WHAT) if text == "all" else text.split(",")
    unknown = [name for name in chosen if name not in WHAT]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(WHAT)}, or all, not {unknown[0]!r}")
    return list(dict.fromkeys(chosen))


def _folder(name: str) -> Path:
    """The folder for the pictures; ValueError where there can be none."""
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder with --out")
    here = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(here, os.W_OK):
        raise ValueError(f"{folder}: you may not write there; name another folder with --out")
    return folder
