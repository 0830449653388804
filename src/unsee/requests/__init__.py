"""Requests that arrive one after another: the ledger of what was asked for and what was done."""
