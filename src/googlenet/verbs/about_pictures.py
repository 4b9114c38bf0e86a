"""What a network sees in single pictures: the answers of ``googlenet explain`` that are about pictures."""

import torch

from ..insight import cam, drawing, gradcam, scales
from ..insight.page import Picture
from ..insight.stages import stages
from .asked import Asked, Found

# Classes that a class activation map is drawn of, and classes' lines over the sizes.
MAPS, LINES = 3, 6


def cam_answer(asked: Asked) -> Found:
    """Class activation maps of each picture."""
    figures, pictures, lines = [], [], []
    names, size = asked.checkpoint.classes, asked.size
    for given in asked.given:
        pixels = asked.pixels(given)
        with torch.no_grad():
            logits = asked.model(pixels)[0]
        chosen = asked.classes(logits, MAPS)
        maps = cam.class_maps(asked.model, pixels, chosen).maps.cpu()
        places = cam.peaks(maps, size, size)[0].tolist()
        shares = logits.double().softmax(-1).tolist()
        height, width = maps.shape[-2:]
        rows = [
            {
                "label": names[number], "logit": logits[number].item(), "probability": shares[number],
                "map_mean": values.mean().item(), "peak": {"x": x, "y": y},
            }
            for number, values, (y, x) in zip(chosen, maps[0], places, strict=True)
        ]  # fmt: skip
        figures.append({"path": given.path, "map": [height, width], "classes": rows})
        titles = [f"{row['label']}\nlogit {row['logit']:.2f}, p {row['probability']:.2f}" for row in rows]
        best = rows[0]
        where = f"peak at x {best['peak']['x']:.0f}, y {best['peak']['y']:.0f} of {size}x{size} pixels"
        if height == width == 1:
            where = f"the last map is one position at {size} px: it cannot say where; try a larger --size"
        lines.append(f"{given.path}: {best['label']} {best['probability']:.3f}, map {height}x{width}, {where}")
        caption = (
            f"Class activation maps of {given.path}: what each position of the last map adds to the class's logit."
        )
        pictures.append(
            Picture(f"{given.name}-cam.png", drawing.draw_cam(asked.seen(given), titles, maps[0]), caption)
        )
    return Found("Class activation maps", figures, pictures, lines)


def gradcam_answer(asked: Asked) -> Found:
    """Grad-CAM and score maps of each picture, by stage."""
    figures, pictures, lines = [], [], []
    names, size = asked.checkpoint.classes, asked.size
    layers = [asked.args.stage] if asked.args.stage else list(stages(asked.model))
    for given in asked.given:
        pixels = asked.pixels(given)
        with torch.no_grad():
            logits = asked.model(pixels)
        chosen = asked.classes(logits[0], 1)
        target = torch.tensor(chosen, device=asked.device)
        cams = [gradcam.grad_cam(asked.model, pixels, layer, target)[0].cpu() for layer in layers]
        scores = [gradcam.score_map(asked.model, pixels, layer, target)[0].cpu() for layer in layers]
        places = [cam.peaks(values[None, None], size, size)[0, 0].tolist() for values in cams]
        rows = [
            {"stage": layer, "map": list(values.shape), "peak": {"x": x, "y": y}, "score_sum": score.sum().item()}
            for layer, values, score, (y, x) in zip(layers, cams, scores, places, strict=True)
        ]
        label, share = names[chosen[0]], logits[0].double().softmax(-1)[chosen[0]].item()
        figures.append({"path": given.path, "label": label, "probability": share, "stages": rows})
        lines.append(
            f"{given.path}: {label} {share:.3f}, peaks "
            + ", ".join(f"{layer} ({x:.0f}, {y:.0f})" for layer, (y, x) in zip(layers, places, strict=True))
        )
        picture = drawing.draw_stages(asked.seen(given), f"{label}, p {share:.2f}", layers, cams, scores)
        caption = f"Grad-CAM and activation x gradient of {given.path} for {label}, by stage."
        pictures.append(Picture(f"{given.name}-gradcam.png", picture, caption))
    return Found("Grad-CAM and score maps, stage by stage", figures, pictures, lines)


def scales_answer(asked: Asked) -> Found:
    """Each picture's class probabilities by size."""
    figures, pictures, lines = [], [], []
    checkpoint = asked.checkpoint
    usual = checkpoint.preprocess.size
    sizes = sorted(asked.args.sizes or scales.usual_sizes(asked.model, usual))
    for given in asked.given:
        rows = scales.probabilities(asked.model, checkpoint.preprocess, given.pixels, sizes)
        best = rows.amax(0).topk(min(LINES, rows.shape[1])).indices.tolist()
        figures.append(
            {
                "path": given.path, "usual_size": usual, "sizes": sizes,
                "classes": [{"label": checkpoint.classes[k], "probability": rows[:, k].tolist()} for k in best],
            }
        )  # fmt: skip
        winners = [checkpoint.classes[k] for k in rows.argmax(-1).tolist()]
        said = ", ".join(
            f"{size} px {name} {p:.2f}" for size, name, p in zip(sizes, winners, rows.amax(-1).tolist(), strict=True)
        )
        lines.append(f"{given.path}: {said}")
        names = [checkpoint.classes[k] for k in best]
        picture = drawing.draw_scales(asked.seen(given), sizes, names, rows[:, best], usual)
        pictures.append(Picture(f"{given.name}-scales.png", picture, f"{given.path}: class probabilities by size."))
    return Found("The same picture at several sizes", figures, pictures, lines)
