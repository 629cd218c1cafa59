# The report's first cure: inputs are cleaned.
_base_ = ['plain.py']

model = dict(data_preprocessor=dict(type='CleaningPreprocessor'))
