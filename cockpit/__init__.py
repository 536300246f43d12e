"""The terminal cockpit: the app, its screens and widgets, and the verbs of the command line.

From the bottom up: `state` and `profiles` (what is known, no screen), `connection` (requests to the engine), `widgets`,
`screens`, `app`. `verbs` stand beside the screens and are reached through `cli`. A module imports only from its own
package or from one below it.
"""
