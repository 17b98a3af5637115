"""Small trainables on large frozen language models, in JAX."""

__version__ = '0.1.0'


def __getattr__(name: str):
  if name == 'PromptedModel':  # imported on first use: `import prompt_tuning` stays quick
    from prompt_tuning.interactive import PromptedModel
    return PromptedModel
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
