"""`python -m ikebana`"""

from ikebana.cli import main

main()
