"""Tokens, enrolment codes and who may do what."""
