# guarded_fp16.py with one fault at each site where an update can go bad, for
# tools/fire_drill.py. Iterations count from 1, 45 of them make an epoch.
_base_ = ['guarded_fp16.py']

default_hooks = dict(
    fire_drill=dict(
        type='mmnanguard.FaultInjectionHook',
        faults=[
            dict(iter=30, site='input', value='nan'),
            dict(
                iter=110,
                site='activation',
                value='inf',
                where=r'backbone\.1\.conv',
            ),
            dict(iter=180, site='loss', value='-inf'),
            dict(iter=250, site='grad', value='nan', where=r'head\.weight'),
            dict(
                iter=320,
                site='buffer',
                value='inf',
                where=r'backbone\.0\.bn\.running_var',
            ),
        ],
    )
)
