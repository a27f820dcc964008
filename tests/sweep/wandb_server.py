"""An emulation of a W&B server, over loopback and in memory: enough of it for the real `wandb` command and Api.

It was written from the queries that wandb 0.19 to 0.31 send, and never held against W&B's own server. It has no
artifacts, no access rights, no parallel writers of one run, and its bayes search draws at random. Runs that end in
failure after `mark_preempting` are handed out again with a resume command, as W&B's documentation has it.
"""

import contextlib
import io
import itertools
import json
import random
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import yaml

from se_lab.sweep.axes import draw

ENTITY = "tester"
NOW = "2020-01-01T00:00:00Z"


class Server:
    """The state of the emulated server, and an answer to each kind of query."""

    def __init__(self):
        self.lock = threading.RLock()
        self.runs = {}  # (project, name) -> dict
        self.sweeps = {}  # name -> dict
        self.agents = {}  # id -> sweep name
        self.unknown = []  # operations that were asked for and are not emulated
        self.url = ""

    # what a test looks at

    def runs_of(self, sweep):
        """Return the runs of a sweep, in the order in which they were handed out."""
        return [run for run in self.runs.values() if run["sweepName"] == sweep]

    # GraphQL

    def graphql(self, operation, query, given):
        """Return the data of an answer."""
        answers = {
            "Viewer": self.viewer, "GetViewer": self.viewer, "GetDefaultEntity": self.viewer, "viewer": self.viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "ProbeProjectInput": lambda _: {"ProjectType": {"fields": [{"name": "internalId"}]}},
            "ProbeRunInput": lambda _: {"RunType": {"fields": [{"name": "projectId"}]}},
            "UpsertSweep": self.upsert_sweep, "SweepWithRuns": self.get_sweep, "GetSweep": self.get_sweep,
            "GetSweepLegacy": self.get_sweep, "Sweep": self.get_sweep, "CreateAgent": self.create_agent,
            "Heartbeat": self.heartbeat, "UpsertBucket": self.upsert_bucket, "RunResumeStatus": self.resume_status,
            "CreateRunFiles": self.create_files, "Runs": self.list_runs, "Run": self.get_run,
            "RunFullHistory": self.get_run, "SampledHistoryPage": self.get_run, "HistoryPage": self.get_run,
            "RunHistoryKeys": self.get_run, "RunStoppedStatus": self.get_run, "RunState": self.get_run,
            "GetSweepState": self.get_sweep, "RunParquetHistory": self.get_run, "RunSampledHistory": self.get_run,
        }  # fmt: skip
        with self.lock:
            if operation not in answers:
                if operation != "OrganizationCoreWeaveOrganizationID":  # which wandb can do without
                    self.unknown.append(operation)
                raise NotImplementedError(f"{operation} is not emulated")
            return answers[operation](given)

    def viewer(self, _):
        user = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "t@example.com"}
        rest = {"admin": False, "flags": "{}", "deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": []}}
        return {"viewer": user | rest}

    def upsert_sweep(self, given):
        if (known := self.sweeps.get(given.get("id"))) is not None:  # wandb sweep --pause and its like
            known["state"] = given.get("state") or known["state"]
            return {"upsertSweep": {"sweep": {"name": known["name"]}, "configValidationWarnings": []}}
        config = yaml.safe_load(given["config"])
        name = f"sweep{len(self.sweeps) + 1}"
        points, count = points_of(config)
        self.sweeps[name] = {
            "id": name, "name": name, "config": given["config"], "state": "RUNNING", "method": config["method"],
            "description": config.get("description"), "displayName": None, "bestLoss": None, "createdAt": NOW,
            "updatedAt": NOW, "heartbeatAt": NOW, "earlyStopJobRunning": False, "controller": None, "scheduler": None,
            "runCount": 0, "runCountExpected": count, "__typename": "Sweep", "program": config.get("program"),
            "points": points, "project": given["projectName"],
        }  # fmt: skip
        sweep = {"name": name, "project": self.project(given["projectName"])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def project(self, name):
        return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}

    def get_sweep(self, given):
        sweep = self.sweeps.get(given.get("sweep") or given.get("name"))
        if sweep is None:
            return {"project": {"sweep": None}}
        shown = {key: value for key, value in sweep.items() if key not in ("points", "project")}
        runs = self.runs_of(sweep["name"])
        shown |= {"runCount": len(runs), "runs": {"edges": [{"node": self.shown(run)} for run in runs]}}
        return {"project": {"sweep": shown}}

    def create_agent(self, given):
        agent = f"agent{len(self.agents) + 1}"
        self.agents[agent] = given["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def heartbeat(self, given):
        """Hand out one run at a time to an agent that has none, and exit when none is left and none is running."""
        sweep = self.sweeps[self.agents[given["id"]]]
        running = json.loads(given["runState"])
        runs = self.runs_of(sweep["name"])
        cancelled = sweep["state"] == "CANCELED"
        commands = [{"type": "stop", "run_id": run["name"]} for run in runs if run["stopped"] or cancelled]
        commands = [command for command in commands if command["run_id"] in running]
        if running or sweep["state"] == "PAUSED":
            return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}
        preempted = next((run for run in runs if run["state"] == "preempted"), None)
        point = None if preempted or sweep["state"] != "RUNNING" else next(sweep["points"], None)
        if preempted and not cancelled:
            preempted["state"] = "running"
            commands = [self.command("resume", preempted, sweep)]
        elif point is not None:
            name = f"{sweep['name']}run{len(runs) + 1}"
            run = self.run(sweep["project"], name, sweep["name"])
            run["args"] = {key: {"value": value} for key, value in point.items()}
            run["config"] = dict(run["args"])
            commands = [self.command("run", run, sweep)]
        else:
            sweep["state"] = "CANCELED" if cancelled else "FINISHED"
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def command(self, kind, run, sweep):
        run["commands"].append(kind)
        return {"type": kind, "run_id": run["name"], "args": run["args"], "program": sweep["program"]}

    def run(self, project, name, sweep=None):
        """Return a run, a new one where there is none."""
        fresh = {
            "id": f"{project}/{name}", "name": name, "project": project, "sweepName": sweep, "state": "running",
            "config": {}, "summary": {}, "history": [], "commands": [], "tags": [], "group": None, "preempting": False,
            "exitcode": None, "displayName": name, "begun": False, "ends": 0, "jobType": None,
            "stopped": False, "exported": False,
        }  # fmt: skip
        return self.runs.setdefault((project, name), fresh)

    def upsert_bucket(self, given):
        known = [run for run in self.runs.values() if run["id"] == given.get("id")]
        inserted = not known and (given["project"], given["name"]) not in self.runs
        run = known[0] if known else self.run(given["project"], given["name"], given.get("sweep"))
        if not known:
            run["begun"] = True
            run["state"] = "running"
        if given.get("config"):
            run["config"] |= json.loads(given["config"])
        run["group"] = given.get("groupName") or run["group"]
        run["tags"] = given.get("tags") or run["tags"]
        run["displayName"] = given.get("displayName") or run["displayName"]
        bucket = self.shown(run) | {"project": self.project(run["project"])}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def resume_status(self, given):
        run = self.runs.get((given["project"], given["name"]))
        if run is None or not run["begun"]:
            return {"model": self.project(given["project"]) | {"bucket": None}}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]), "eventsTail": "[]"}
        counts = {"logLineCount": 0, "eventsLineCount": 0, "wandbConfig": json.dumps({"t": 1})}
        return {"model": self.project(given["project"]) | {"bucket": self.shown(run) | tails | counts}}

    def create_files(self, given):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def list_runs(self, given):
        wanted = json.loads(given.get("filters") or "{}")
        runs = [r for r in self.runs.values() if r["project"] == given["project"] and r["begun"]]
        runs = [run for run in runs if matches(run, wanted)]
        start = int(given.get("cursor") or 0)
        page = runs[start : start + (given.get("perPage") or 50)]
        edges = [
            {"node": self.shown(run) | {"projectId": "1"}, "cursor": str(start + number)}
            for number, run in enumerate(page, 1)
        ]
        end = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(runs)}
        project = {"internalId": "1", "runCount": len(runs), "readOnly": False}
        return {"project": project | {"runs": {"edges": edges, "pageInfo": end}}}

    def get_run(self, given):
        names = [given.get(key) for key in ("name", "run", "runName", "runId")]
        project = given.get("project") or given.get("projectName")
        run = self.runs.get((project, next(filter(None, names), None)))
        if run is None or not run["begun"]:
            return {"project": {"run": None}}
        lines = [json.dumps(row) for row in run["history"]]
        low, high = given.get("minStep") or 0, given.get("maxStep") or len(lines)
        exported = len(lines) // 2  # the older steps are in a parquet file, and left out for a client that knows it
        run["exported"] |= "liveKeys" in given
        history = {"history": lines[max(low, exported * run["exported"]) : high], "stopped": run["stopped"]}
        history["sampledHistory"] = [sampled(run, given)]
        url = f"{self.url}/parquet/{run['project']}/{run['name']}"
        live = run["history"][exported:]
        history["parquetHistory"] = {"parquetUrls": [url] if exported else [], "liveData": live}
        return {"project": {"internalId": "1", "run": self.shown(run) | history | {"projectId": "1"}}}

    def shown(self, run):
        keys = sorted({key for row in run["history"] for key in row})
        kept = {
            key: run[key] for key in ("id", "name", "displayName", "sweepName", "state", "group", "tags", "jobType")
        }
        user = {"name": ENTITY, "username": ENTITY}
        return kept | {
            "config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"]), "user": user,
            "historyLineCount": len(run["history"]),
            "historyKeys": {"keys": {key: {} for key in keys}, "lastStep": len(run["history"]) - 1},
            "createdAt": NOW, "heartbeatAt": NOW, "description": None, "notes": None, "commit": None, "readOnly": False,
            "systemMetrics": "{}", "exitcode": run["exitcode"],
        }  # fmt: skip

    # the stream of a run's files

    def stream(self, project, name, body):
        """Take in what a run sends of its history, summary and end."""
        with self.lock:
            run = self.run(project, name)
            files = body.get("files") or {}
            if history := files.get("wandb-history.jsonl"):
                del run["history"][history["offset"] :]
                run["history"] += [json.loads(line) for line in history["content"]]
            if summary := files.get("wandb-summary.json"):
                run["summary"] = json.loads(summary["content"][-1])
            run["preempting"] |= bool(body.get("preempting"))
            if body.get("complete"):
                run["ends"] += 1
                run["exitcode"] = body.get("exitcode", 0)
                failed = "preempted" if run["preempting"] else "failed"
                run["state"] = "finished" if run["exitcode"] == 0 else failed
                run["preempting"] = False


def points_of(config):
    """Return an iterator over the points of a sweep, and how many there are (None: no end)."""
    parameters, cap = config["parameters"], config.get("run_cap")
    names = sorted(parameters)
    if config["method"] == "grid":
        axes = [parameters[name].get("values", [parameters[name].get("value")]) for name in names]
        points = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)][:cap]
        return iter(points), len(points)
    shares = random.Random(0)
    drawn = ({name: draw(parameters[name], shares.random()) for name in names} for _ in itertools.count())
    return itertools.islice(drawn, cap), cap


def matches(run, wanted):
    """Tell whether a run passes a filter of the client's: MongoDB's words over a run's fields and its config."""

    def holds(key, value):
        if key in ("$and", "$or"):
            return (all if key == "$and" else any)(matches(run, one) for one in value)
        if key.startswith("config."):
            found = run["config"].get(key.removeprefix("config.").removesuffix(".value"), {}).get("value")
        else:
            found = run[{"sweep": "sweepName"}.get(key, key)]
        tests = {
            "$in": lambda x: found in x or (isinstance(found, list) and bool({*found} & {*x})),
            "$nin": lambda x: found not in x, "$ne": lambda x: found != x, "$eq": lambda x: found == x,
            "$gt": lambda x: found is not None and found > x, "$gte": lambda x: found is not None and found >= x,
            "$lt": lambda x: found is not None and found < x, "$lte": lambda x: found is not None and found <= x,
        }  # fmt: skip
        if isinstance(value, dict):
            return all(tests[name](operand) for name, operand in value.items())
        return found == value

    return all(holds(key, value) for key, value in wanted.items())


def sampled(run, given):
    """Return the rows of a run that have all of the keys asked for, evenly spread where there are too many."""
    spec = given.get("spec") or next(iter(given.get("specs") or []), "{}")
    asked = json.loads(spec)
    keys = asked.get("keys") or []
    rows = [{k: row[k] for k in keys} if keys else row for row in run["history"] if all(key in row for key in keys)]
    return rows[:: max(len(rows) // asked.get("samples", len(rows) or 1), 1)]


class Handler(BaseHTTPRequestHandler):
    """HTTP to the emulation and back."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server.state
        if not self.path.startswith(("/graphql", "/files/")):  # telemetry, which nobody here reads
            return self.answer({})
        body = json.loads(content)
        if stream := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path):
            server.stream(*stream.groups(), body)
            return self.answer({"exitcode": None, "limits": {}})
        # a query without a name is told by its first field
        named = re.search(r"(?:(?:query|mutation)[\s{]+|^\s*{\s*)(\w+)", body.get("query", ""))
        operation = body.get("operationName") or (named.group(1) if named else self.path)
        try:
            return self.answer({"data": server.graphql(operation, body.get("query"), body.get("variables") or {})})
        except NotImplementedError as error:
            return self.answer({"errors": [{"message": str(error)}], "data": None})

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer({})

    def do_GET(self):
        if exported := re.fullmatch(r"/parquet/([^/]+)/([^/?]+).*", self.path):
            rows = self.server.state.runs[exported.groups()]["history"]
            table = pyarrow.Table.from_pylist(rows[: len(rows) // 2])
            content = io.BytesIO()
            pyarrow.parquet.write_table(table, content)
            return self.send(content.getvalue(), "application/octet-stream")
        self.answer({})

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def answer(self, data):
        self.send(json.dumps(data).encode(), "application/json")

    def send(self, content, kind):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        whole, start = len(content), int(asked[1]) if asked else 0
        content = content[start : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{whole}")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Loopback(ThreadingHTTPServer):
    """A server whose clients may hang up."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def emulated_server():
    """Run the emulation on a free port of loopback."""
    http = Loopback(("127.0.0.1", 0), Handler)
    http.state = Server()
    http.state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield http.state
    finally:
        http.shutdown()
        http.server_close()
