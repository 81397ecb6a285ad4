"""One module per export target, each with a subclass of `emqdeploy.workflows.handlers.Target` registered by name."""
