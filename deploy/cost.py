#!/usr/bin/env python3
"""What flowvigil costs on AWS, in dollars a month: the tables of cost.md, from prices and sizes that stand here.

    deploy/cost.py                     the tables
    deploy/cost.py 5000 --shards 6     the same for 5,000 records a second

Prices are list prices of us-east-1 as remembered in November 2026; nobody looked them up. Put your own in.
"""

import argparse

HOURS, SECONDS = 730, 730 * 3600

PRICES = {
    "flow log to CloudWatch Logs, GB": [(10_000, 0.50), (20_000, 0.25), (20_000, 0.10), (float("inf"), 0.05)],
    "CloudWatch Logs, GB kept a month": 0.03,
    "shard, hour": 0.015,
    "shard kept over 24 hours, hour": 0.02,
    "stream, million units of 25 KB put": 0.014,
    "on-demand stream, hour": 0.04,
    "on-demand stream, GB in": 0.08,
    "on-demand stream, GB out": 0.04,
    "on-demand stream kept over 24 hours, GB a month": 0.10,
    "Fargate ARM, vCPU-hour": 0.03238,
    "Fargate ARM, GB-hour": 0.00356,
    "Fargate Spot, share of it": 0.35,
    "DynamoDB, million writes": 0.625,
    "DynamoDB, million reads": 0.125,
    "NAT gateway, hour": 0.045,
    "NAT gateway, GB": 0.045,
    "endpoint and zone, hour": 0.01,
    "load balancer, hour": 0.0225,
    "load balancer unit, hour": 0.008,
    "cache.t4g.micro, hour": 0.0128,
    "cache.t4g.small, hour": 0.0256,
    "cache.m7g.large, hour": 0.126,
    "S3, thousand puts": 0.005,
    "ml.c7i.large, hour": 0.107,
    "metric of its own, month": 0.30,
    "alarm, month": 0.10,
    # KMS keys, secrets, the firewall with its rules, the dashboard, the trail, Container Insights.
    "fixed, month": 40.0,
    "GuardDuty, GB": [(500, 1.00), (2_000, 0.50), (7_500, 0.25), (float("inf"), 0.15)],
}

# Measured on a simulated VPC: a line with the 27 fields of source.yaml, one with the default's 14 fields, and what 500 lines weigh in the
# stream, compressed as CloudWatch Logs does it.
LINE_BYTES, DEFAULT_LINE_BYTES, STREAM_BYTES = 245, 110, 57
# Compressed in CloudWatch Logs' archive, as AWS states it of logs in general.
ARCHIVED = 0.15

SIZES = {
    "small": dict(rate=100, shards=1, on_demand=False, tasks=1, cpu=0.5, memory=1, nat=1, endpoints=0, cache="cache.t4g.micro", models=0),
    "medium": dict(rate=2_000, shards=8, on_demand=False, tasks=2, cpu=1, memory=2, nat=0, endpoints=11, cache="cache.t4g.small", models=0),
    "large": dict(rate=50_000, shards=16, on_demand=True, tasks=3, cpu=2, memory=4, nat=0, endpoints=11, cache="cache.m7g.large", models=4),
}


def tiers(table, amount):
    cost = 0.0
    for width, price in table:
        part = min(amount, width)
        cost, amount = cost + part * price, amount - part
    return cost


def month(rate, shards, on_demand, tasks, cpu, memory, nat, endpoints, cache, models):
    """Line by line, and what GuardDuty would cost for the same traffic."""
    p = PRICES
    records = rate * SECONDS
    log_gb, stream_gb = records * LINE_BYTES / 1e9, records * STREAM_BYTES / 1e9
    task_hours = tasks * (0.7 + 0.3 * p["Fargate Spot, share of it"]) * HOURS
    # Records of a stream: what CloudWatch Logs packs together, some 500 lines, which is one or two units of 25 KB.
    puts = records / 500 * max(1, 500 * STREAM_BYTES / 25_000)
    lines = {
        "flow logs into CloudWatch Logs": tiers(p["flow log to CloudWatch Logs, GB"], log_gb),
        "their 30 days there": log_gb * ARCHIVED * p["CloudWatch Logs, GB kept a month"],
        "Kinesis": (
            HOURS * p["on-demand stream, hour"] + stream_gb * (p["on-demand stream, GB in"] + p["on-demand stream, GB out"])
            + stream_gb / 30 * p["on-demand stream kept over 24 hours, GB a month"]
            if on_demand else
            shards * HOURS * (p["shard, hour"] + p["shard kept over 24 hours, hour"]) + puts / 1e6 * p["stream, million units of 25 KB put"]
        ),
        "Fargate": task_hours * (cpu * p["Fargate ARM, vCPU-hour"] + memory * p["Fargate ARM, GB-hour"]),
        # Leases are renewed every 3.3 s and looked through every 10 s by each task; anomalies are a few hundred writes.
        "DynamoDB": shards * SECONDS / 3.33 / 1e6 * p["DynamoDB, million writes"]
                    + tasks * SECONDS / 10 / 1e6 * p["DynamoDB, million reads"] * max(1, shards / 20) + 1,
        "Valkey": 2 * HOURS * p[f"{cache}, hour"],
        # A snapshot of each shard a minute.
        "S3": shards * HOURS * 60 / 1000 * p["S3, thousand puts"] + 1,
        "network": nat * (HOURS * p["NAT gateway, hour"] + stream_gb * p["NAT gateway, GB"]) + endpoints * 2 * HOURS * p["endpoint and zone, hour"]
                   + (stream_gb * 0.01 if endpoints else 0),
        "load balancer": HOURS * (p["load balancer, hour"] + p["load balancer unit, hour"]),
        "metrics and alarms": (14 + 3 * shards) * p["metric of its own, month"] + 26 * p["alarm, month"],
        "model endpoints": models * HOURS * p["ml.c7i.large, hour"],
        "keys, secrets, firewall, dashboard, trail": p["fixed, month"],
    }
    return lines, records / 1e9, tiers(p["GuardDuty, GB"], records * DEFAULT_LINE_BYTES / 1e9)


def table(sizes):
    told = {name: month(**size) for name, size in sizes.items()}
    rows = ["| dollars a month | " + " | ".join(f"{name}, {size['rate']:,} records/s" for name, size in sizes.items()) + " |"]
    rows.append("| --- |" + " ---: |" * len(sizes))

    def row(name, cell):
        rows.append(f"| {name} | " + " | ".join(cell(*told[size]) for size in sizes) + " |")

    for name in next(iter(told.values()))[0]:
        row(name, lambda lines, billions, guard, name=name: f"{lines[name]:,.0f}")
    row("**all**", lambda lines, billions, guard: f"**{sum(lines.values()):,.0f}**")
    row("of it, what exists without flowvigil too (flow logs)", lambda lines, billions, guard: f"{list(lines.values())[0] + list(lines.values())[1]:,.0f}")
    row("billion records a month", lambda lines, billions, guard: f"{billions:,.2f}")
    row("**dollars a billion records**", lambda lines, billions, guard: f"**{sum(lines.values()) / billions:,.0f}**")
    row("without the flow logs", lambda lines, billions, guard: f"{(sum(lines.values()) - list(lines.values())[0] - list(lines.values())[1]) / billions:,.0f}")
    row("GuardDuty, foundational, the flow logs' part", lambda lines, billions, guard: f"{guard:,.0f}")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rate", type=float, nargs="?", help="records a second")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--on-demand", action="store_true")
    given = parser.parse_args()
    if given.rate is None:
        print(table(SIZES))
    else:
        print(table({"yours": {**SIZES["medium"], "rate": given.rate, "shards": given.shards, "on_demand": given.on_demand}}))


if __name__ == "__main__":
    main()
