"""Every name that users depend on.

A new name fails the tests until it is listed here, and a name that is gone
breaks somebody's config, import or script.
"""

# ``__all__`` of the package, and of each module and sub-package in it.
EXPORTED = {
    'mmnanguard': '__version__ apply_guard watch',
    'check_stack': 'check_stack',
    'doctor': '',
    'core': (
        'Action AutoClip Autopsy BadTensor Cause ClipRule Divergence '
        'GuardConfigError GuardEvent GuardPolicy GuardState LeftOut LossLevel '
        'LrBackoff NanGuardError NoClip NormClip Observation '
        'RollbackUnavailable ScaleMove ScaleReading Shard Spike SpikePolicy '
        'TieredClip TrainingHalted Verdict ZClip decide find_cause'
    ),
    'datasets': (
        'ExcludeSamples Finite NotDegenerate NotEmpty Range ValidateSample'
    ),
    'hooks': (
        'Audit AutopsyHook BadSamplesHook BatchDumpHook EventLogHook '
        'EventTextHook FaultInjectionHook Fp32ModulesHook GuardListener '
        'InputGuardHook LrFactorHook NanGuardHook RollbackHook '
        'StabilityMonitorHook StateAuditHook choose_resume'
    ),
    'migrate': 'Migrated Migrations flatten migrate migrate_tree',
    'models': 'SafeAdaLNZero SafeAttention SafeRMSNorm',
    'numerics': (
        'AdaptiveGradClip GuardedGradScaler StateCopy load_plain masked_mean '
        'masked_softmax safe_divide safe_log safe_norm safe_sqrt watch'
    ),
    'optim': (
        'Guard NanGuardAmpOptimWrapper NanGuardDeepSpeedOptimWrapper '
        'NanGuardOptimWrapper apply_guard guarded_step'
    ),
    'read_config': 'read_config read_given_config',
    'registry': (
        'CHECKS CLIPS DATASETS FAULTS HOOKS MODELS OPTIM_WRAPPERS TRANSFORMS '
        'get_registered register_bare_names register_configs'
    ),
    'report': (
        'Assessment RunReport load_run print_reports read_events write_page'
    ),
    'safe_load': 'allow_mmengine_checkpoints',
    'version': '',
}

# ``type='mmnanguard.X'`` of a config, by registry.
REGISTERED = {
    'CHECKS': 'Finite NotDegenerate NotEmpty Range',
    'CLIPS': 'AdaptiveGradClip AutoClip TieredClip ZClip',
    'DATASETS': 'ExcludeSamples',
    'FAULTS': '',
    'HOOKS': (
        'AutopsyHook BadSamplesHook BatchDumpHook EventLogHook EventTextHook '
        'FaultInjectionHook Fp32ModulesHook InputGuardHook LrFactorHook '
        'NanGuardHook RollbackHook StabilityMonitorHook StateAuditHook'
    ),
    'MODELS': 'SafeAdaLNZero SafeAttention SafeRMSNorm',
    'OPTIM_WRAPPERS': (
        'NanGuardAmpOptimWrapper NanGuardDeepSpeedOptimWrapper '
        'NanGuardOptimWrapper'
    ),
    'TRANSFORMS': 'ValidateSample',
}

# Keys of ``optim_wrapper.guard``, and of the dicts in it.
POLICY_KEYS = {
    'GuardPolicy': (
        'max_consecutive_skips max_skip_rate skip_rate_window proven_after '
        'when_exhausted accumulation check_step spike lr_backoff divergence'
    ),
    'SpikePolicy': 'threshold window warmup action',
    'LrBackoff': 'above factor floor recovery',
    'Divergence': 'window share needs_norms',
}

# Fields of the rows of events.jsonl, by kind, in the order of the file.
ROW_FIELDS = {
    'start': (
        'schema kind run attempt iter max_iters versions guards unguarded '
        'launcher ranks ranks_per_node lr_factor process loaded loaded_bad'
    ),
    'update': (
        'schema kind id run attempt time iter epoch batch_idx optimizer '
        'action cause ranks loss losses bad_losses num_iters grad_norm lr '
        'loss_scale scale_blamed num_bad_params num_params params samples '
        'bad_samples '
        'inputs watched consecutive_skips total_skips counts '
        'routine_overflows since spike clip_coef lr_factor step '
        'micro_batches '
        'growth origin'
    ),
    'autopsy': (
        'schema kind id phase module module_type method op source dtype '
        'input_absmax output_absmax dtype_max batch_rows samples rank repeats '
        'exact fp32_is_finite remedy outputs is_pole operands '
        'num_samples keys tried mask derivative huge_weight'
    ),
    'input': 'schema kind id action iter ranks num_samples samples keys',
    'dump': 'schema kind id rank path bytes needs checkpoint remarks',
    'remedy': 'schema kind id remedy module config value',
    'rollback': (
        'schema kind id iter to path num_rollbacks lr_factor loss_scale '
        'evidence'
    ),
    'audit': (
        'schema kind id run attempt iter epoch ranks where num_bad tensors '
        'checkpoint'
    ),
    'bypass': 'schema kind iter optimizer is_guarded message',
    'halt': 'schema kind id iter story cause',
    'end': (
        'schema kind how iter error first_losses last_losses bad_params '
        'bad_inputs'
    ),
}

# Scalars that a run logs besides those of MMEngine and of its model.
SCALARS = (
    'train/grad_norm train/guard/amp_scale train/guard/bad_samples '
    'train/guard/clip_coef train/guard/left_out train/guard/lr_factor '
    'train/guard/routine_overflows train/guard/skipped'
)

# Files in a work dir besides those of MMEngine.
FILES = (
    '<time>/nanguard/dumps/iter_3_rank0.pt <time>/nanguard/events.jsonl '
    'last_clean_checkpoint'
)

# Keys in checkpoints besides those of MMEngine, and all keys of a dump.
CHECKPOINT_KEYS = 'nanguard nanguard_autopsies nanguard_fp32_modules'
OPTIMIZER_KEYS = 'guard loss_scaler param_groups state'
DUMP_KEYS = (
    'batch_idx batches config event fp32_modules is_exact iter rank rng '
    'runtime_info schema settings versions weights world_size'
)

# ``python -m mmnanguard TOOL`` and ``--guard NAME``.
TOOLS = (
    'audit_dataset doctor fire_drill migrate_config replay report '
    'scan_checkpoints train'
)
GUARDS = 'bf16 fp16 fp32 full'
