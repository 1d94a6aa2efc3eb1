"""robustill: adversarially robust knowledge distillation."""
