"""What a table shows of a record, read straight from its bytes: the rest of it is passed over, not built."""

from __future__ import annotations

from typing import Any

import msgspec


class _Costs(msgspec.Struct, frozen=True):
    params: Any = None
    params_se: Any = None
    macs: Any = None
    macs_se: Any = None
    elementwise: Any = None


class _Provenance(msgspec.Struct, frozen=True, rename={"se_lab": "se-lab"}):
    se_lab: Any = None


class _Data(msgspec.Struct, frozen=True):
    digest: Any = None


class _Record(msgspec.Struct, frozen=True):
    status: str
    spec: dict[str, Any]
    error: str | None = None
    metrics: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    complexity: _Costs = _Costs()
    provenance: _Provenance = _Provenance()
    data: _Data = _Data()


_DECODER = msgspec.json.Decoder(_Record)


def row_of(trial_id: str, record: bytes) -> dict[str, Any]:
    """Return the row of a trial whose record.json holds these bytes; of an error, the traceback's last line.

    Raises ValueError where they are no record.
    """
    try:
        known = _DECODER.decode(record)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    costs = known.complexity
    return {
        "trial_id": trial_id,
        "status": known.status,
        "error": known.error.strip().rpartition("\n")[2] if known.error else None,
        **known.spec,
        **known.metrics,
        "params": costs.params,
        "params_se": costs.params_se,
        "macs": costs.macs,
        "macs_se": costs.macs_se,
        "elementwise": costs.elementwise,
        **known.timings,
        "code_version": known.provenance.se_lab,
        "data_digest": known.data.digest,
    }
