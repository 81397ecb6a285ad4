"""The compiled part of emqdeploy: ``libemq``, with a plain C interface that `emq.h` beside it describes."""
