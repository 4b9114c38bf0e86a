"""Tables of exported files: speed and parity."""

from .markdown import Result, plural, table


def engines(result: Result) -> str:
    """Format the speed of every engine and baseline at 224 px, and the ratios."""
    rows = [
        [
            row["name"], row["batch"], f"{1e3 * row['latency']:.1f}", f"{1e3 * row['p95']:.1f}",
            f"{row['images_per_second']:.1f}", f"{1e3 * row['cold_start']:.0f}", f"{row['memory'] / 1e6:.0f}",
            "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}", f"{row['matmul_utilization']:.0%}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = [
        "network, engine", "batch", "median ms", "p95 ms", "images/s", "cold start, ms", "memory, MB", "file, MB",
        "relative to a matrix product",
    ]  # fmt: skip
    ratios, versions = result["ratios"], result["versions"]
    float_layers = ", ".join(ratios["float_layers"]) or "none"
    return (
        f"{table(header, rows)}\n\n"
        f"- float32: {ratios['float32']} takes **{ratios['float32_to_baseline']}** of the time of the fastest baseline "
        f"({ratios['baseline']}) with the same weights, **{ratios['float32_to_matmul']}** of the time of a matrix "
        "product with the same number of multiplications;\n"
        f"- int8: {ratios['int8']} is **{ratios['baseline_to_int8']}** times as fast as that baseline and loses "
        f"**{ratios['top1_lost']:.4f}** of top-1 ({ratios['top1']:.4f} to {ratios['top1_int8']:.4f} on "
        f"{ratios['images']:,} test images); float32 layers: {float_layers};\n"
        f"- torchvision's network in plain PyTorch takes **{ratios['eager_to_float32']}** times as long as the float32 "
        f"file, **{ratios['eager_to_int8']}** times as long as the int8 file.\n\n"
        f"224 px, {plural(result['threads'], 'thread')}, {result['rounds']} rounds of "
        f"{result['seconds'] / result['rounds']:g} s, each in its own process; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{result['cpu_capability']}."
    )


def export_parity(result: Result) -> str:
    """Format the largest difference by network and engine."""
    names = ["onnxruntime", "openvino", "ncnn", "torch"]

    def format_error(row: Result, engine: str) -> str:
        value = row.get(engine)
        return f"{value:.1e}" if isinstance(value, float) else "not supported"

    rows = [[f"`{row['name']}`", *(format_error(row, name) for name in names)] for row in result["rows"]]
    test_set = ", ".join(f"{name} {value:.1e}" for name, value in result["test_set"].items())
    return (
        f"{table(['network', *names], rows)}\n\nRaw pixels compared with `Preprocess` and the network on "
        f"{result['images']:,} test images: {test_set}. torch {result['torch']}."
    )
