"""Commands that write, under faults: killed, with a full disk, with damaged files and so on (nox -s reliability)."""
