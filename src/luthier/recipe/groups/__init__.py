"""What a recipe holds: its groups and keys, every default once.

Names are those of Transformers' ``TrainingArguments``, PEFT's ``LoraConfig`` and bitsandbytes, so
that what people know holds. The descriptions are the help texts of the keys: `luthier recipe
explain`, the JSON Schema and docs/recipe.md show them as they stand here.
"""
