"""The discrete-event kernel: clocked devices and a server, their verbs, the record of spans, and
learning on the host.
"""
