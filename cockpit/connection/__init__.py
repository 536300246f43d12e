"""How the app and the verbs talk to the engine: the attached app, services, and the requests that queue a job."""
