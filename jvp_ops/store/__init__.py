"""What lasts: fingerprints of what was computed, checkpoints, and run folders that hold results."""

from jvp_ops.store._checkpoint import load_checkpoint as load_checkpoint
from jvp_ops.store._checkpoint import prepare_checkpoint as prepare_checkpoint
from jvp_ops.store._checkpoint import probes_agree as probes_agree
from jvp_ops.store._checkpoint import save_checkpoint as save_checkpoint
from jvp_ops.store._fingerprint import callable_identity as callable_identity
from jvp_ops.store._fingerprint import fingerprint as fingerprint
from jvp_ops.store._fingerprint import module_identity as module_identity
from jvp_ops.store._hash import raw_bytes as raw_bytes
from jvp_ops.store._hash import sha256_of as sha256_of
from jvp_ops.store._matrix_file import MatrixFile as MatrixFile
from jvp_ops.store._matrix_file import check_output as check_output
from jvp_ops.store._run import FORMAT as FORMAT
from jvp_ops.store._run import check_run_folder as check_run_folder
from jvp_ops.store._run import prepare_run_folder as prepare_run_folder
from jvp_ops.store._run import provenance as provenance
from jvp_ops.store._run import read_record as read_record
from jvp_ops.store._run import read_run as read_run
from jvp_ops.store._run import save_run as save_run
