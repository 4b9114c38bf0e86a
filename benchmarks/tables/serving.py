"""Tables of the server and of batch prediction with Ray."""

from .markdown import Result, plural, processor, table


def serving(result: Result) -> str:
    """Format the speed of the server and its engine, and the responses under each load."""
    rows = [
        [name, phase["seconds"], ", ".join(f"{count:,} x {status}" for status, count in phase["responses"].items()),
         phase["wrong"], phase["lost"]]
        for name, phase in result["phases"].items()
    ]  # fmt: skip
    engine = " and ".join(str(rate) for rate in result["engine_images_per_second"])
    return (
        f"`{result['model']}` at {result['size']} px, {result['connections']} connections, batches of up to "
        f"{result['batch']}, {plural(result['threads'], 'thread')}: **{result['images_per_second']} images/s**; "
        f"its engine alone ({result['engine']}) in batches, before and after: {engine}; ratio **{result['ratio']}**. "
        f"The unfolded network in eager PyTorch, served: {result['eager_images_per_second']} images/s, a factor of "
        f"**{result['eager_factor']}**. Resident memory during the load: "
        f"{', '.join(map(str, result['memory_mb']))} MB. Exit code after SIGTERM: {result['exit_code']}. "
        f"{processor(result['cpu'])}.\n\n" + table(["load", "seconds", "responses", "wrong", "lost"], rows)
    )


def hostile_server(result: Result) -> str:
    """Format the responses to each kind of request, the memory and the health checks."""
    rows: list[list[object]] = [
        [name, ", ".join(f"{count:,} x {status}" for status, count in sorted(by_status.items()))]
        for name, by_status in result["statuses"].items()
    ]
    return (
        f"{table(['requests', 'responses'], rows)}\n\n{result['seconds']} s; status 500 or more, except 503: "
        f"**{result['server_errors']}**. Peak memory {result['peak_mb']} MB, idle {result['idle_mb']} MB, budget "
        f"{result['budget_mb']} MB: above both {result['above_budget_mb']} MB. {result['health_checks']:,} health "
        f"checks: 99 % within {result['health_p99_ms']} ms, at most {result['health_max_ms']} ms."
    )


def ray_predict(result: Result) -> str:
    """Format what was predicted after a worker was killed."""
    return (
        f"{result['images']:,} images in {result['shards']} shards, {result['workers']} workers; "
        f"{result['killed']} killed after {result['shards_when_killed']} shards. Rows: **{result['rows']:,}**, "
        f"missing {result['missing']}, duplicates {result['duplicates']}; {result['seconds']} s, including the "
        "start of the workers."
    )


def fuzz_server(result: Result) -> str:
    """Format the responses by status, and the memory."""
    statuses: dict[str, int] = {}
    for kind, count in result["by_status"].items():
        status = kind.split()[1]
        statuses[status] = statuses.get(status, 0) + count
    rows: list[list[object]] = [[status, f"{count:,}"] for status, count in sorted(statuses.items())]
    memory = result["memory_mb"]
    generated = result["schemathesis"]
    lines = [line.strip() for line in generated["output"] if "generated" in line] if generated else []
    return (
        f"{table(['status', 'responses'], rows)}\n\n{result['requests']:,} requests in {result['seconds']} s, "
        f"{len(result['failures'])} of them with status 5xx, a malformed response or none. Resident memory "
        f"{memory['after 300']} MB after the first 300, {memory['end']} MB at the end."
        + "".join(f" schemathesis, no server error in: {line}." for line in lines)
    )
