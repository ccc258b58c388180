"""Makes crates/arch/data: what shardwright knows of transformers' architectures, read off the installed transformers.

Every class of every model type is built on the meta device, from its default config and from configs that differ from it in one key, and the module
trees are merged. The keys that change a size tell its formula. A key that is on in all configs that have a part, and off in all that lack it, or the
reverse, is the part's condition. Both are confirmed under configs that differ in several keys.

Each module imports only from those above it:

    library          the installed transformers, 4 or 5; building a class without data; a model type's classes
    configs          reading and setting a config's keys, and those of its parts
    default_configs  a config for each model type that its classes take, small enough to build often
    changes          configs that differ from one in a key or a few
    trees            what a model has, as a tree of modules that the trees of other configs are merged into
    formulas         a size as a product or sum of config keys: arithmetic alone
    size_formulas    the formulas of a model's sizes, checked against models under other configs
    switches         the key that decides whether a part is there
    ties             parameters that are one: tied weights, parts that layers share
    conversions      transformers' tables of renamed and converted weights
    config_json      what a config's class makes of a config.json: defaults, older names, keys made of others
    layers           which layer of a list is of which kind
    classes          all of the above for one class
    model_types      all of it for one model type and its parts
    data_file        the data file's format: writing, reading, comparing with the installed transformers
    run              many model types at once, in processes
"""

import os
import warnings

# before any module imports transformers
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
