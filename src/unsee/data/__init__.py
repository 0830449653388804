"""Questions, pictures and where they come from. Light to import: the modules inside are not."""

import re

SOURCE = re.compile(r"^[a-z]+:")  # before the path of a DATA argument
OPTIONS = re.compile(r",(?:group|name|forget)=.*$", re.DOTALL)  # behind it
