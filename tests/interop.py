#!/usr/bin/env python3
"""A worker of the Kinesis Client Library 3 (its port kcl-rs) that says what it does, in one JSON object a line.

    interop.py STREAM APPLICATION WORKER

It reads flow log lines, of which the source port is the number, and checkpoints behind every batch. What it says:

    {"shard": "shardId-0", "began": "4968"}        a lease is ours, and this is its checkpoint
    {"shard": "shardId-0", "read": [1, 2, 5]}      the numbers of a batch
    {"shard": "shardId-0", "checkpoint": "4970"}   the batch is done with
    {"shard": "shardId-0", "ended": "lost"}        somebody else has the lease (or "shard", "told")
"""
import json
import sys
import threading

from kcl_rs import CheckpointError, RecordProcessorBase, Scheduler


# Every shard has a thread of its own.
mouth = threading.Lock()


def say(**what):
    with mouth:
        print(json.dumps(what), flush=True)


class Reader(RecordProcessorBase):
    def initialize(self, given):
        self.shard = given.shard_id
        say(shard=self.shard, began=given.sequence_number)

    def process_records(self, given):
        if not given.records:
            return
        say(shard=self.shard, read=[int(record.data.split()[5]) for record in given.records])
        try:
            given.checkpointer.checkpoint()
            say(shard=self.shard, checkpoint=given.records[-1].sequence_number)
        except CheckpointError as error:
            say(shard=self.shard, refused=error.value)

    def lease_lost(self, given):
        say(shard=self.shard, ended="lost")

    def shard_ended(self, given):
        given.checkpointer.checkpoint()
        say(shard=self.shard, ended="shard")

    def shutdown_requested(self, given):
        say(shard=self.shard, ended="told")


stream, application, worker = sys.argv[1:]
Scheduler(
    stream_name=stream,
    application_name=application,
    worker_identifier=worker,
    record_processor_factory=Reader,
    initial_position="TRIM_HORIZON",
    retrieval_mode="POLLING",
    idle_time_between_reads_millis=200,
    # An empty table is looked at again after so long, which is most of what its start takes.
    shard_sync_interval_millis=10_000,
).run()
