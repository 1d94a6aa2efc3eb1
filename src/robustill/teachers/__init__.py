"""Teachers: the frozen networks that a student learns from, alone or as an ensemble, and the cache of their logits."""

# `loading` and `check` are not imported here: they need the configuration, and ensembles work with torch alone.
from robustill.teachers.cache import CachedTeacher, TeacherCache
from robustill.teachers.ensemble import Ensemble, combine

__all__ = ["CachedTeacher", "Ensemble", "TeacherCache", "combine"]
