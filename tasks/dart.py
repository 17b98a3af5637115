"""DART 1.1.1 (Nan et al. 2021): open-domain triples -> a sentence."""

from prompt_tuning.tasks import builders, generation, generation_metrics

generation.register('dart', generation.BuilderSource(builders.DartV111), generation_metrics.dart)
