"""Commands whose last arguments are a script of the user's, with its own."""

from __future__ import annotations

import click


class WithScript(click.Command):
    """A command with `own` arguments: all from the next one on is the script's."""

    own = 1

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click: what is behind the script's name is not read as options of this command."""
        options = [each for each in self.params if isinstance(each, click.Option)]
        with_value = {name for each in options if not each.is_flag for name in each.opts}
        place = seen = 0
        while place < len(args) and args[place] != "--":
            if not args[place].startswith("-"):
                seen += 1
            if seen > self.own:
                args = [*args[:place], "--", *args[place:]]
                break
            place += 2 if args[place] in with_value else 1
        return super().parse_args(ctx, args)


class OfScript(WithScript):
    """A command without arguments of its own: all from the first one on is a script's."""

    own = 0
