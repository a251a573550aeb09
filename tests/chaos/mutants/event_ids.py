"""No event is known: each copy enters history and count."""

from workers import merge

merge._find = lambda history, event: -1
