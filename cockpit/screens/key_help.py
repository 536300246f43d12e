"""What each key does, in a sentence, by the class that has the key: group -> action -> sentence.

The help shows the groups in this order. An action with arguments is named with them.
"""

from __future__ import annotations

Sentences = dict[str, dict[str, str]]

HELP: dict[str, Sentences] = {
    "DashboardScreen": {
        "Steer this run": {
            "bad_batch": "Look at the batch that is held back, and decide about it.",
            "pause": "Pause the run after the current step.",
            "continue": "Let the paused run go on.",
            "resume": "Queue the ended run again, from its newest checkpoint.",
            "save": "Save a checkpoint after the current step.",
            "evaluate": "Evaluate after the current step.",
            "adjust": "Change a setting of the running run.",
            "learning_rate": "Change the learning rate.",
            "stop": "Stop the run, with or without a last checkpoint.",
        },
        "Look closer": {
            "replies": "Show how the sampled replies have changed.",
            "history": "Show what has been changed, and what was warned of.",
            "evaluations": "Open the evaluations of this run.",
            "export": "Export the best checkpoint for other programs.",
            "copy": "Copy the run's state and figures.",
        },
        "Charts and runs": {
            "neighbour(-1)": "Go to the next newer run.",
            "neighbour(1)": "Go to the next older run.",
            "log_scale": "Switch the chart between a linear and a logarithmic axis.",
            "zoom(1)": "Zoom in on the last steps.",
            "zoom(-1)": "Zoom out.",
        },
    },
    "RunsScreen": {
        "The list": {
            "open": "Show the run on the dashboard.",
            "filter": "Filter by id, name, state, base, method or adapter.",
            "sort": "Sort by the next column; a click on a heading sorts by that one.",
            "cursor(1)": "Go down.",
            "cursor(-1)": "Go up.",
            "leave": "Close the filter, then the overlay, then go back.",
        },
        "The run under the cursor": {
            "pause": "Pause it after the current step.",
            "continue": "Let it go on.",
            "evaluations": "Open its evaluations.",
            "worst": "Show the training rows that it learnt worst.",
            "stop": "Stop it, or take it out of the queue.",
            "resume": "Queue it again, from its newest checkpoint.",
            "delete": "Delete it with its checkpoints, after a question.",
            "export": "Export its best checkpoint for other programs.",
            "queue(1)": "Move it towards the end of the queue.",
            "queue(-1)": "Move it towards the start of the queue.",
        },
        "Compare losses": {
            "overlay": "Mark it; two marked runs are drawn in one chart.",
            "log_scale": "Switch between a linear and a logarithmic axis.",
            "zoom(1)": "Zoom in on the last steps.",
            "zoom(-1)": "Zoom out.",
        },
    },
    "EvaluationsScreen": {
        "Evaluations": {
            "open": "Show the replies, the worst first.",
            "mark": "Mark an evaluation; two marked ones are compared.",
            "measure": "Measure a checkpoint now.",
            "cancel": "Stop the measurement; finished parts are kept.",
            "reload": "Read the list again.",
            "leave": "Go back to the list, then to the screen below.",
        },
        "Replies": {
            "sort": "Sort by another score.",
            "filter": "Show all replies, those that passed, or those that failed.",
            "move(1)": "Go down.",
            "move(-1)": "Go up.",
            "scroll(1)": "Scroll the reply down.",
            "scroll(-1)": "Scroll the reply up.",
        },
    },
    "ProfileScreen": {
        "The profile": {
            "save": "Save to this or another file; another file is not replaced unasked.",
            "launch": "Check the profile once more and launch it.",
            "next_problem": "Go to the next problem in the text.",
            "leave": "Leave the text, then the screen. What is not saved is kept as a draft.",
        },
    },
    "Form": {
        "The form": {
            "cycle(-1)": "Step through the choices of a setting.",
            "cycle(1)": "Step to the next choice.",
            "clear": "Give the setting its default again.",
        },
    },
    "SettingsList": {
        "The form": {
            "select": "Edit the setting, or step to its next choice.",
            "cursor_down": "Go down.",
            "cursor_up": "Go up.",
        },
    },
    "ChatScreen": {
        "Models": {
            "pick": "Choose what to talk to: a run, a checkpoint or a model.",
            "beside": "Set another one beside it; both get the same questions.",
            "remove": "Remove the selected one; its replies stay.",
            "blind": "Hide the names of two until you have voted.",
            "tally": "Show the totals of votes and ratings.",
            "settings": "Go to the sampling settings and the system prompt.",
        },
        "The conversation": {
            "write": "Go to the input.",
            "stop": "Stop the reply; what has come is kept.",
            "clear": "Begin a new conversation; the old one is saved.",
            "save": "Save the conversation with all its branches.",
            "open": "Open a saved conversation.",
            "leave": "Stop the reply, else leave the settings or the input, else go back.",
        },
    },
    "ChatInput": {"The conversation": {"screen.stop": "Stop the reply; what has come is kept."}},
    "Conversation": {
        "The selected turn": {
            "step(1)": "Select the next turn.",
            "step(-1)": "Select the previous turn.",
            "column(-1)": "Select the reply to the left.",
            "column(1)": "Select the reply to the right.",
            "branch(-1)": "Show the previous wording or reply.",
            "branch(1)": "Show the next wording or reply.",
            "edit": "Ask the question in other words, as a branch.",
            "again": "Get another reply, as a branch.",
            "raw": "Show the reply's raw text.",
            "differences": "Mark the words that differ.",
            "open": "Enter a tree, or open the thinking.",
            "copy": "Copy the reply.",
            "rate": "Rate the reply.",
            "vote('left')": "Vote for the left reply.",
            "vote('right')": "Vote for the right reply.",
            "vote('tie')": "Vote for neither: both are good.",
            "vote('both bad')": "Vote for neither: both are bad.",
        },
    },
    "DataScreen": {
        "Rows": {
            "pick": "Open the rows of a profile, a file or a folder.",
            "move(-1)": "Go to the previous row.",
            "move(1)": "Go to the next row.",
            "move(-10)": "Go ten rows back.",
            "move(10)": "Go ten rows on.",
            "go_to(0)": "Go to the first row.",
            "go_to(-1)": "Go to the last row.",
            "scroll(2)": "Scroll down.",
            "scroll(-2)": "Scroll up.",
            "find": "Find rows by words, columns, lengths or number.",
            "part": "Show the held-out rows, then the rejected ones.",
        },
        "Ways to look": {
            "tokens": "Show the row as tokens, as rendered text, as it stands in its file.",
            "batch": "Show real batches, or the rows again.",
            "facts": "On a narrow screen, show the facts in place of the row.",
            "count": "Count the tokens of a large set.",
        },
        "Rows that were learnt badly": {
            "worst": "Show the rows that the run of the dashboard learnt worst.",
        },
        "Stages": {
            "run": "Run the stages up to one, as a run does first.",
            "stop": "Stop what is going on, else leave the batches, else go back.",
        },
        "Expanded rows": {
            "decide('accepted')": "Accept the row.",
            "decide('dropped')": "Drop the row; it is never trained on.",
            "take_back": "Take the last decision back.",
            "undecided": "Show only rows without a decision.",
        },
    },
    "WorstRowsScreen": {
        "Rows": {
            "sort": "Order the rows by another measure.",
            "move(1)": "Go down.",
            "move(-1)": "Go up.",
            "scroll(1)": "Scroll the text down.",
            "scroll(-1)": "Scroll the text up.",
            "leave": "Go back.",
        },
        "The row under the cursor": {
            "edit": "Open its file at its line in $EDITOR.",
            "exclude('0')": "Leave it out of later runs, by a list that data.exclude names.",
            "exclude('0.5')": "Use it half as often in later runs, by the same list.",
        },
    },
    "DoctorScreen": {
        "Checks": {
            "examine": "Run all checks again.",
            "screen.scroll(2)": "Scroll down.",
            "screen.scroll(-2)": "Scroll up.",
        },
    },
    "CockpitApp": {
        "Everywhere": {
            "help": "Show this help; F1 does so while you type, too.",
            "command_palette": "Find an action or a screen by its name; ctrl+p does so while you type, too.",
            "hosts": "Choose the host that the screens show, of those named with --on.",
            "detach": "Leave the app; the runs go on. What is not saved is asked about.",
            "interrupt": "Stop what is going on, else clear the line, else ask whether to leave.",
            "back": "Close what lies on top, else go back.",
        },
    },
}
