#!/bin/bash
# One training on two machines of eight GPUs each; submitted again, it continues from its last epoch:
#   sbatch examples/cluster/slurm_train.sh cifar10_akd_resnet18 --run runs/student --compute.precision bf16
#SBATCH --job-name=robustill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# The epoch is saved before the time is over.
#SBATCH --signal=TERM@120
set -euo pipefail

# The first line; a pipe into head(1) would end the script if scontrol still writes.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
exec srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
  -m -- robustill train "$@"
