"""Commands whose last arguments are a script of the user's, with its own."""

from __future__ import annotations

import click


class WithScript(click.Command):
    """A command with one argument of its own: all from the second one on is a script's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click: what is behind the script's name is not read as options of this command."""
        options = [each for each in self.params if isinstance(each, click.Option)]
        with_value = {name for each in options if not each.is_flag for name in each.opts}
        place = own = 0
        while place < len(args) and args[place] != "--":
            if not args[place].startswith("-"):
                own += 1
            if own == 2:
                args = [*args[:place], "--", *args[place:]]
                break
            place += 2 if args[place] in with_value else 1
        return super().parse_args(ctx, args)
