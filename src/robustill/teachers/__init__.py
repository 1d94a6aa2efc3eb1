"""Teachers: the frozen networks that a student learns from, alone or as an ensemble, and the cache of their logits."""

from robustill.teachers.cache import CachedTeacher, TeacherCache
from robustill.teachers.ensemble import Ensemble, combine
from robustill.teachers.loading import load_teacher, with_cache

__all__ = ["CachedTeacher", "Ensemble", "TeacherCache", "combine", "load_teacher", "with_cache"]
