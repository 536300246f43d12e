"""A small client for OpenAI-compatible services.

    client     one request over HTTP, and what its failure means
    retries    a request repeated until it is answered or given up
    budget     limits on tokens and money, reserved before a request is sent
    journal    requests and answers on disk, so that nothing is paid for twice

Data expansion and the judge use it.
"""
