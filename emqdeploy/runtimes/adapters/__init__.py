"""One module per runtime, each with a subclass of `emqdeploy.runtimes.base.Runtime` registered by name."""
