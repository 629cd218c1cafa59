"""The migration of one file, as a part of its tree."""

from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Mapping,
    Optional,
    Set,
    Tuple,
)

from .bases import ConfigFile, find_rival, needs_hooks
from .config_value import ConfigDict, ConfigValue, leave_out
from .custom_hooks import migrate_custom_hooks
from .differences import opened
from .environment import migrate_environment
from .guarded_types import is_half
from .hooks import migrate_hooks
from .loops import migrate_data, migrate_loops, migrate_resume
from .migration import TARGETS, Migration
from .model_config import migrate_model
from .notes import Notes
from .old_schedules import lr_config_of
from .place import place
from .policy import Loop
from .render import Kept
from .schedules import migrate_schedules
from .source import Source
from .wrapper import migrate_wrapper

__all__ = ['OWNERS', 'Job', 'belongs_above', 'merged_form', 'rewrite']

Overlay = Callable[[str], Any]

# The keys of 1.x that decide which file of a tree gets a key of 2.x. MMEngine
# refuses bases beside one another that set the same key, so that a part
# without any of them keeps its other keys for the file that inherits it.
OWNERS: Dict[str, Tuple[str, ...]] = {
    'optim_wrapper': ('optimizer',),
    'param_scheduler': ('lr_config', 'momentum_config'),
    'train_cfg': ('runner', 'total_epochs', 'total_iters'),
    'default_hooks': ('log_config',),
    'env_cfg': ('dist_params',),
}
# How training changes because MMEngine ignores a key of 1.x.
SILENT = {
    'fp16': ', so that training is in float32 unless its type says otherwise',
    'optimizer_config': ', so that nothing is clipped or accumulated unless '
    'it says so',
}
STEPS = (
    migrate_wrapper,
    migrate_schedules,
    migrate_loops,
    migrate_resume,
    migrate_data,
    migrate_hooks,
    migrate_environment,
)


@dataclass
class Job:
    """A file to migrate, and the facts about its tree.

    Attributes:
        file: The file.
        overlay: The function that returns a guard's overlay by its name.
        guard: The name of the guard; None selects the guard for the config's
            precision.
        alive: The keys of 1.x, inherited ones included, that have an effect.
        loop: The training loop of the config.
        base_loop: The training loop of the bases; None if they have none.
        withheld: The keys of 2.x that another file of the tree sets.
        gives_away: Whether all files that inherit this one are migrated with
            it, so that keys which belong to them are removed here.
        is_alone: Whether this file alone is migrated.
        bases: The merged value of the bases after their migration.
        set_below: The keys of 2.x that the file or one below it sets itself.
        readers: The files above that read a key of this one, by key.
        waiting: The keys of 1.x that bases leave to the files above them.
    """

    file: ConfigFile
    overlay: Overlay
    guard: Optional[str]
    alive: Set[str]
    loop: Loop
    base_loop: Optional[Loop]
    withheld: Set[str] = field(default_factory=set)
    gives_away: bool = False
    is_alone: bool = True
    bases: ConfigDict = field(default_factory=dict)
    set_below: Set[str] = field(default_factory=set)
    readers: Dict[str, str] = field(default_factory=dict)
    waiting: Set[str] = field(default_factory=set)


def rewrite(
    job: Job, more: Mapping[str, ConfigValue], is_plain: bool = False
) -> Migration:
    """Return the migration of a file, with its new statements in place.

    Args:
        job: The file, and what is known of its tree.
        more: Values to write beside those that the file says itself, by key
            of 2.x; a dict is merged.
        is_plain: Whether values are written in place of their source.
    """
    m = migration_of(job)
    m.source.is_plain = is_plain
    find_old(m, job, more)
    choose_guard(m, job)
    # Determined before the steps, which remove keys from m.old that they
    # cannot migrate.
    is_1x = bool(m.old)
    # Notes without a line are printed in the order of the steps.
    for step in STEPS:
        step(m)
    # A removed hook may have a limit, which goes into the guard of the new
    # wrapper: the wrapper has to exist.
    migrate_custom_hooks(m, is_1x)
    migrate_model(m)
    for key, value in more.items():
        if key == 'default_hooks':
            m.hooks = merged(m.hooks, value)
        else:
            m.new[key] = merged(m.new.get(key), value)
    m.new = over(m.new, job.bases)
    # The keys of 2.x can be ordered in the file once all of them are known.
    place(m)
    report_remaining(m, is_1x)
    return m


def merged_form(job: Job, keys: Collection[str]) -> Migration:
    """Return the migration of the merged value of a file.

    It says what the file and its bases have to become, taken together.

    Args:
        job: The file, and what is known of its tree.
        keys: The keys of 1.x to migrate.
    """
    m = migration_of(job)
    m.is_merged, m.inherited, m.base_loop = True, {}, None
    m.old = {key for key in keys if not belongs_above(job, key)}
    choose_guard(m, job)
    for step in STEPS:
        step(m)
    if 'model' not in m.cfg:
        # The guard's hooks are for the configs that one trains with.
        m.hooks = leave_out(m.hooks, m.guard['default_hooks'])
    return m


def migration_of(job: Job) -> Migration:
    """Return the migration of a file before its first step."""
    file = job.file
    source = Source(file.text, str(file.path))
    cfg = {**file.cfg, **inherited_schedule(job)}
    m = Migration(file.path, source, cfg, file.inherited, Notes())
    m.loop, m.base_loop, m.is_alone = job.loop, job.base_loop, job.is_alone
    m.new_bases = job.bases
    m.kept_back, m.readers = kept_back(job), job.readers
    return m


def inherited_schedule(job: Job) -> ConfigDict:
    """Return the ``lr_config`` of a config whose base is migrated already.

    Empty if the config inherits no schedulers, or if it is not known what
    they were in 1.x.
    """
    file = job.file
    schedulers = file.inherited.get('param_scheduler')
    if 'param_scheduler' in file.names or not isinstance(schedulers, list):
        return {}
    old = file.cfg.get('lr_config') or {}
    base = lr_config_of(schedulers, job.base_loop or job.loop)
    if base is None or '_delete_' in old or 'lr_config' in file.inherited:
        return {}
    return dict(lr_config={**base, **old})


def kept_back(job: Job) -> Set[str]:
    """Return the keys of 2.x that the files above this one have to set."""
    keys = set(job.withheld)
    cfg = job.file.cfg
    # A file with a model is more than a part of other configs.
    if 'model' in cfg:
        return keys
    for key, owners in OWNERS.items():
        if not {key, *owners} & {*cfg}:
            keys.add(key)
    # Without by_epoch a schedule counts as the loop does.
    lr_config = cfg.get('lr_config') or dict(policy='fixed')
    is_open = (
        not job.loop.is_known
        and 'by_epoch' not in lr_config
        and lr_config.get('policy') != 'fixed'
    )
    if is_open or (job.gives_away and job.loop.total is None):
        keys.add('param_scheduler')
    return keys


def belongs_above(job: Job, key: str) -> Set[str]:
    """Return the keys of 2.x for which a key of 1.x is kept for others."""
    targets = {*TARGETS[key]}
    if needs_hooks(job.file.cfg, key):
        targets.add('default_hooks')
    return targets & kept_back(job)


def find_old(m: Migration, job: Job, more: Mapping[str, ConfigValue]) -> None:
    """Collect the keys of 1.x that can be migrated; report the rest."""
    for key, targets in TARGETS.items():
        if key in job.file.dead - job.file.names:
            # A variable, which something of 2.x reads.
            continue
        if key in m.source.tangled:
            # With several assignments or a change in place, no single
            # statement shows the value, so none can be replaced.
            lines = ', '.join(map(str, m.source.tangled[key]))
            advice = 'write it in one place, and run this again'
            if {*targets} & {*more}:
                advice = 'its value is migrated, delete these lines'
            m.left(key, f'{key} is set or changed at lines {lines}: {advice}')
        elif key in m.source.assigned:
            rival = find_rival(m.source, key)
            belongs = belongs_above(job, key)
            if rival is not None and key in job.file.dead:
                m.left(
                    key,
                    f'{key} has no effect: MMEngine reads {rival} '
                    f'(line {m.line(rival)}) alone{SILENT.get(key, "")}; '
                    'delete one of the two',
                )
            elif not belongs:
                m.old.add(key)
            elif job.gives_away:
                m.moved.add(key)
                m.done(key, f'{key} -> the configs that inherit this file')
            else:
                m.left(
                    key,
                    f'{key} stays: {", ".join(sorted(belongs))} is set by the '
                    'config that inherits this file, and takes it from here',
                )


def choose_guard(m: Migration, job: Job) -> None:
    """Set the guard that is named, or the guard for the config's precision."""
    precision = 'fp32'
    if is_half(m.cfg, m.old):
        precision = 'fp16'
    chosen = job.overlay(job.guard or precision)
    wrapper = dict(chosen.get('optim_wrapper') or {})
    if 'type' not in wrapper:
        # The overlay sets the policy alone, so the config keeps its precision.
        wrapper = {**job.overlay(precision)['optim_wrapper'], **wrapper}
    # The overlay of fp16 has dtype='float16'. Merged over a base of bfloat16
    # it would change the precision, unless the user asked for it by name.
    dtype = (m.inherited.get('optim_wrapper') or {}).get('dtype')
    if dtype and not job.guard and precision == 'fp16':
        wrapper['dtype'] = dtype
    hooks = chosen.get('default_hooks') or {}
    m.guard = dict(optim_wrapper=wrapper, default_hooks=hooks)
    m.is_named = job.guard is not None


def merged(old: ConfigValue, new: ConfigValue) -> ConfigValue:
    """Merge a value over another, which may contain kept source."""
    if isinstance(old, Kept) and isinstance(old.value, dict):
        entries = leave_out(old.value, old.without)
        old = {
            key: Kept((*old.path, key), value, is_said=old.is_said)
            for key, value in entries.items()
        }
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if '_delete_' in new:
        return new
    made = dict(old)
    for key, value in new.items():
        made[key] = merged(old.get(key), value)
    return made


def over(config: ConfigDict, base: Mapping[str, ConfigValue]) -> ConfigDict:
    """Return a dict with ``_delete_`` wherever MMEngine needs it to merge.

    MMEngine refuses a dict over another value without it, and leaves it in
    the value if the base has no such key.
    """
    made: ConfigDict = {}
    for key, value in config.items():
        is_new = key not in base
        if isinstance(value, Kept) and isinstance(value.value, dict):
            if is_new:
                value = replace(value, without=(*value.without, '_delete_'))
            elif not isinstance(base[key], dict):
                value = {**opened(value), '_delete_': True}
        elif isinstance(value, dict):
            under = base.get(key)
            if '_delete_' in value or not isinstance(under, dict):
                under = {}
            entries = over(leave_out(value, ('_delete_',)), under)
            if not is_new and (
                '_delete_' in value or not isinstance(base[key], dict)
            ):
                entries = {'_delete_': True, **entries}
            value = entries
        made[key] = value
    return made


def report_remaining(m: Migration, is_1x: bool) -> None:
    """Report what the user has to do outside of the migrated keys."""
    if not is_1x:
        return
    # mmcv normalized images in the pipeline (the transform Normalize);
    # MMEngine does it on the device, in the model's data_preprocessor.
    if 'img_norm_cfg' in m.source.assigned:
        m.left('img_norm_cfg', 'normalising moves to model.data_preprocessor')
    # A config without a model is only a base of other files.
    if 'model' in m.cfg and 'default_scope' not in m.cfg:
        m.left(
            (),
            "default_scope: the name of your project's package, such "
            "as 'mmdet', in which MMEngine looks for its classes",
        )
