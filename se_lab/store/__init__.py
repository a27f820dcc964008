"""The store: one folder per trial, each held by one worker at a time.

In: a `RunRecord`. Out: a table with one row per trial.

<store>/<trial_id>/record.json       status, spec, costs, metrics, timings, environment
                   metrics.csv       one row per epoch
                   predictions.npz   per test image: key, label, top5, correct
                   last.ckpt, previous.ckpt, best.ckpt
                   claims/           the workers that held the trial, in order
"""

from se_lab.store.claims import HEARTBEAT_SECONDS as HEARTBEAT_SECONDS
from se_lab.store.claims import LEASE_SECONDS as LEASE_SECONDS
from se_lab.store.claims import Claim as Claim
from se_lab.store.claims import ClaimLostError as ClaimLostError
from se_lab.store.claims import TrialBusyError as TrialBusyError
from se_lab.store.claims import claim as claim
from se_lab.store.claims import clear_leftovers as clear_leftovers
from se_lab.store.claims import describe_holder as describe_holder
from se_lab.store.claims import holder_of as holder_of
from se_lab.store.files import create_once as create_once
from se_lab.store.files import digest_of_file as digest_of_file
from se_lab.store.files import put_in_place as put_in_place
from se_lab.store.files import read_bytes as read_bytes
from se_lab.store.files import read_sealed as read_sealed
from se_lab.store.files import sealed as sealed
from se_lab.store.files import write_bytes_whole as write_bytes_whole
from se_lab.store.files import write_sealed as write_sealed
from se_lab.store.files import write_text_whole as write_text_whole
from se_lab.store.files import write_whole as write_whole
from se_lab.store.marker import check_store as check_store
from se_lab.store.marker import claims_in as claims_in
from se_lab.store.marker import is_temporary as is_temporary
from se_lab.store.marker import is_trial as is_trial
from se_lab.store.marker import mark_store as mark_store
from se_lab.store.marker import temp_path_of as temp_path_of
from se_lab.store.outputs import cache_folder as cache_folder
from se_lab.store.outputs import guard_outputs as guard_outputs
from se_lab.store.provenance import cpu_model as cpu_model
from se_lab.store.provenance import current_provenance as current_provenance
from se_lab.store.provenance import differences as differences
from se_lab.store.provenance import mixtures as mixtures
from se_lab.store.record import RunRecord as RunRecord
from se_lab.store.record import read_record as read_record
from se_lab.store.record import read_result as read_result
from se_lab.store.record import trial_folder as trial_folder
from se_lab.store.record import write_record as write_record
from se_lab.store.rows import read_records as read_records
