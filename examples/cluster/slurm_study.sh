#!/bin/bash
# A study as a job array, each job a part of its runs. The array begins at 1; a second one trains the students whose teachers
# other jobs of the first were still training:
#   first=$(sbatch --parsable examples/cluster/slurm_study.sh guidelines --seeds 3)
#   sbatch --dependency=afterany:$first examples/cluster/slurm_study.sh guidelines --seeds 3
#SBATCH --job-name=robustill
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

exec srun robustill study "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
